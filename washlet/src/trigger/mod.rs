//! What drives the exports of components.

pub mod http;
