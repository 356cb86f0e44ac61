//! OCI runtime: namespaces, mounts, processes; the shim that owns a container
