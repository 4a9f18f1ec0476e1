//! The sources take loom's locks under a name of their own, since dependencies react to `loom`.

fn main() {
    println!("cargo::rustc-cfg=aquatint_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
