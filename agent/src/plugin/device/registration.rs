//! The socket at which device plugins register, and what the registration folder tells of them.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::UnixListener;

use super::Devices;
use super::api::{Empty, RegisterRequest, VERSION};
use crate::grpc::server::{self, Service};
use crate::grpc::{Code, Status};
use crate::model::validate::names;
use crate::plugin::registry::{Handler, Plugin};

/// Where plugins find us.
const SOCKET: &str = "kubelet.sock";
/// A kubelet's own note, which was here before us.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// Serves registrations in `folder`. Plugins see their sockets vanish and ours come, and register anew.
pub fn serve(devices: Arc<Devices>, folder: PathBuf) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
    let socket = folder.join(SOCKET);
    if UnixStream::connect(&socket).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "a kubelet serves it"));
    }
    for entry in fs::read_dir(&folder)?.flatten() {
        if entry.file_name() != CHECKPOINT && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            fs::remove_file(entry.path())?;
        }
    }
    let listener = UnixListener::bind(&socket)?;
    tokio::spawn(server::serve(listener, Arc::new(Registration { devices, folder })));
    Ok(())
}

struct Registration {
    devices: Arc<Devices>,
    folder: PathBuf,
}

impl Service for Registration {
    fn call<'a>(&'a self, method: &'a str, question: Bytes) -> Option<BoxFuture<'a, Result<Bytes, Status>>> {
        (method == "v1beta1.Registration/Register").then(|| self.register(question).boxed())
    }
}

impl Registration {
    async fn register(&self, question: Bytes) -> Result<Bytes, Status> {
        let RegisterRequest { version, endpoint, resource_name: resource, .. } = server::read(question)?;
        let unknown = |message: String| Status::new(Code::UNKNOWN, message);
        if version != VERSION {
            let message =
                format!("requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]");
            return Err(unknown(message));
        }
        if !names::is_extended_resource(&resource) {
            return Err(unknown(format!("the ResourceName {resource:?} is invalid")));
        }
        let socket = self.folder.join(endpoint.trim_start_matches('/'));
        let registered = self.devices.register(&resource, &socket).await;
        registered.map_err(|why| {
            tracing::warn!(resource, why, "a device plugin could not be registered");
            unknown(why)
        })?;
        Ok(server::answer(&Empty {}))
    }
}

impl Handler for Arc<Devices> {
    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
        async move {
            if !names::is_extended_resource(&plugin.name) {
                return Err(format!("invalid name of device plugin socket: the ResourceName {:?} is invalid", plugin.name));
            }
            if !plugin.versions.iter().any(|version| version == VERSION) {
                let versions = &plugin.versions;
                return Err(format!("manager version, {VERSION}, is not among plugin supported versions {versions:?}"));
            }
            Devices::register(self, &plugin.name, Path::new(&plugin.endpoint)).await
        }
        .boxed()
    }

    fn deregister(&self, plugin: &Plugin) {
        Devices::deregister(self, &plugin.name);
    }
}
