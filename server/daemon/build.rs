//! How `gantryd` is linked.

fn main() {
    // Relative relocations in a hundredth of the room: the loader reads them all at each start, and they stay in memory.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rerun-if-changed=build.rs");
}
