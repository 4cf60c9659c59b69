//! Tells the program where libtorch lies, when it has the engine that needs it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // The supervisor starts workers with an environment of its own making, which has no say in where libraries lie.
    let mut folders = vec!["$ORIGIN/../libtorch/lib".to_owned()];
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        folders.push(format!("{libtorch}/lib"));
    }
    for folder in folders {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
