//! Compiles the few calls of libtorch that `tch` does not pass on.

fn main() {
    println!("cargo:rerun-if-changed=device/libtorch.cpp");
    #[cfg(feature = "torch")]
    compile();
}

#[cfg(feature = "torch")]
fn compile() {
    use std::path::PathBuf;

    // Told by torch-sys, whose choice of libtorch is ours: headers lie beside libraries.
    let libraries = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let libraries = libraries.expect("torch-sys says where libtorch is");
    // For the tests of this package.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libraries.display());
    let include = std::env::var_os("LIBTORCH_INCLUDE").map_or_else(
        || libraries.with_file_name("include"),
        |folder| PathBuf::from(folder).join("include"),
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include)
        .file("device/libtorch.cpp")
        .compile("ltx2_libtorch");
}
