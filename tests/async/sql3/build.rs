//! Linkers of today's compilers do not know labelled imports: `cargo xtask components` makes the
//! component of what they link.

fn main() {
    println!("cargo::rustc-link-arg-cdylib=--skip-wit-component");
}
