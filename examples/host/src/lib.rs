//! A host of one's own: what is not part of `washlet`, built on what its crates say in public.
//!
//! | module | what it is | implements |
//! |---|---|---|
//! | [`files`] | a storage: key-value in a directory | `capabilities::plugin::Plugin` |
//! | [`diary`] | an interface that components import: `example:diary/lines` | `engine::interface::Interface` |
//! | [`clock`] | a trigger of what components export: `example:clock/tick` | `washlet::trigger::Trigger` |
//!
//! `main.rs` puts them together.

pub mod clock;
pub mod diary;
pub mod files;
