//! A resolver for pods: names of Services and pods from a [`Zone`], all else from the host's own resolvers, kept as long as they say.
//!
//! | module | what | I/O |
//! |---|---|---|
//! | `zone` | name and type → records | none |
//! | `message` | records → bytes, and what must be known of other people's bytes | none |
//! | `cache` | answers of others until they are too old | none |
//! | `upstream` | the host's resolvers | UDP, TCP |
//! | `server` | UDP and TCP at the bridge's addresses | UDP, TCP |

mod cache;
mod message;
mod server;
mod upstream;
mod zone;

pub use server::Resolver;
pub use zone::{A, AAAA, Answer, Entry, Record, Target, Zone};
