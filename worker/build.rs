//! Sets the library search path of the program for libtorch, when it is built with the engine that needs it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // The search path is needed, because the supervisor's environment for workers has no variables for library paths.
    let mut folders = vec!["$ORIGIN/../libtorch/lib".to_owned()];
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        folders.push(format!("{libtorch}/lib"));
    }
    for folder in folders {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
