//! The bridge to crate `seccomp`: policies compiled before the fork, filters installed after it, and
//! listeners handed to whoever the bundle names.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde::Serialize;

use crate::error::{Context, Failure, Step};
use crate::spec::{OCI_VERSION, State};
use crate::tail::Tail;

/// Compiles a policy; returns warnings about names it does not know.
pub(crate) fn compile(policy: &seccomp::Policy) -> Step<seccomp::Program> {
    seccomp::compile(policy)
        .map_err(|error| Failure::new("cannot compile linux.seccomp", error.to_string()))
}

/// Installs the filter on the calling process; returns the listener if it notifies.
pub(crate) fn install(program: &seccomp::Program) -> Step<Option<OwnedFd>> {
    seccomp::install(program).ctx("cannot install the seccomp filter")
}

/// Plans to install a filter that does not notify; `program` must outlive the plan.
pub(crate) fn plan(program: &seccomp::Program, tail: &mut Tail) -> Step<()> {
    let what = "cannot install the seccomp filter";
    let call = seccomp::Installation::of(program).ctx(what)?;
    let prog = tail.keep(vec![call.len.into(), call.code as u64]);
    tail.add(
        libc::SYS_seccomp,
        &[seccomp::Installation::OPERATION, call.flags, prog],
        what,
    );
    Ok(())
}

/// What the owner of a listener receives (config-linux.md, "The Container Process State").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    #[serde(rename = "ociVersion")]
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: &'a State,
}

/// Hands the listener of process `pid` to the socket at `path`.
pub(crate) fn hand_over(
    path: &Path,
    metadata: &str,
    state: &State,
    pid: i32,
    listener: &OwnedFd,
) -> Step<()> {
    let what = || format!("cannot hand the seccomp listener to {}", path.display());
    let message = ContainerProcessState {
        oci_version: OCI_VERSION,
        fds: ["seccompFd"],
        pid,
        metadata,
        state,
    };
    let json =
        serde_json::to_vec(&message).map_err(|error| Failure::new(what(), error.to_string()))?;
    send_fd(path, &json, listener).with(what)
}

/// Connects to the stream socket at `path` and sends `bytes` with one descriptor.
pub(crate) fn send_fd(path: &Path, bytes: &[u8], fd: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        &socket,
        &[rustix::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    let mut rest = bytes.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        let sent = rustix::net::send(&socket, rest, SendFlags::NOSIGNAL)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}
