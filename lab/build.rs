//! Tells the experiments where libtorch lies, so that nothing needs `LD_LIBRARY_PATH`:
//! the library's own build script says it for the library's programs alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names it");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
