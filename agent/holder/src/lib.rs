//! The pod's holder: what it speaks ([`protocol`], [`wire`]), how it opens what others name ([`beneath`]), and the only unsafe code of
//! the project ([`sys`]); the agent uses all of it.

pub mod beneath;
pub mod protocol;
pub mod sys;
pub mod wire;
