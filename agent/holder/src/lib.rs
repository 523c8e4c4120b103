//! The pod's holder: what it speaks ([`protocol`], [`wire`]), and the only unsafe code of the project ([`sys`]), which the agent
//! uses too.

pub mod protocol;
pub mod sys;
pub mod wire;
