//! System calls that no safe crate offers. The only module with `unsafe` in it.
