//! Makes containers: recipes, volumes, cgroups, the seccomp filter, and the client of the pod's holder.
//! Knows the model and an image's configuration; knows nothing of when or why a container should run.

pub mod cgroup;
pub mod holder;
pub mod resources;
