//! The pod's holder: what it speaks ([`protocol`]), and the only unsafe code of the project ([`sys`]), which the agent uses too.

pub mod protocol;
pub mod sys;
