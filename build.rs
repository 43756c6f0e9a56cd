//! Compiles the C++ half of `src/autograd` and tells every binary of this package
//! where libtorch lies, so that nothing needs `LD_LIBRARY_PATH`.
use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/autograd/node.cpp");
    // torch-sys hands this to direct dependents only, hence the dependency on it.
    let lib =
        env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names its libtorch");
    let include = PathBuf::from(&lib).parent().expect("lib/").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .flag_if_supported("-fopenmp")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/autograd/node.cpp")
        .compile("downhill_node");
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
