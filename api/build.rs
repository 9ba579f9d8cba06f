//! The page is compiled in: a change of a file there must compile this crate again.

fn main() {
    println!("cargo::rerun-if-changed=web");
}
