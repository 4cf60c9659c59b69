//! Compiles the C++ wrappers of the few libtorch functions that `tch` does not expose.

fn main() {
    println!("cargo:rerun-if-changed=device/libtorch.cpp");
    #[cfg(feature = "torch")]
    compile();
}

#[cfg(feature = "torch")]
fn compile() {
    use std::path::PathBuf;

    // torch-sys reports which libtorch it has chosen; the headers lie beside the libraries.
    let libraries = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let libraries = libraries.expect("torch-sys says where libtorch is");
    // The tests of this package need the search path.
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
