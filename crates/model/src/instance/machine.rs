//! What makes an instance a virtual machine.

use serde::{Deserialize, Serialize};

use super::spec::{InstanceSpec, Mount, MountSource, NetworkMode, inside_path};
use crate::{units::ByteSize, validate::Report};

/// Memory of a virtual machine unless said otherwise.
pub const DEFAULT_MEMORY: ByteSize = ByteSize(1 << 30);
/// Least memory of a virtual machine: a kernel with its initial file system needs as much.
pub const MIN_MEMORY: ByteSize = ByteSize(96 << 20);
/// Most vCPUs of a virtual machine: what an 8-bit APIC id can name.
pub const MAX_VCPUS: u32 = 254;
/// Most bytes of a kernel command line (`COMMAND_LINE_SIZE` of x86).
const MAX_APPEND_BYTES: usize = 2048;

/// Most folders and volumes of a virtual machine: each is a device.
const MAX_FOLDERS: usize = 16;

/// What executes a virtual machine's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The hardware when a probe shows that it works, else the software CPU.
    #[default]
    Auto,
    /// The hardware, or not at all.
    Kvm,
    /// The software CPU.
    Soft,
}

/// A virtual machine's own settings. How many vCPUs it has and how much memory follows from its
/// limits; what runs in it, from its kind and image as for containers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineSpec {
    /// What executes its code.
    pub accel: Accel,
    /// A kernel of one's own: absolute path on the host.
    pub kernel: Option<String>,
    /// An initial file system of one's own: absolute path on the host.
    pub initrd: Option<String>,
    /// Added to the kernel's command line.
    pub append: Option<String>,
    /// What cloud-init in the guest is told to do: the content of a user-data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Public keys that log in by SSH, each a line as in a `.pub` file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Whom the keys log in; who that is without a name, the guest's cloud-init says, else root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_user: Option<String>,
}

impl InstanceSpec {
    /// vCPUs of a virtual machine: one for each begun CPU it may use.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        let cpus = self.limits.cpus.map_or(1, |cpus| cpus.0.div_ceil(1000));
        cpus.clamp(1, MAX_VCPUS)
    }

    /// Memory of a virtual machine, in whole MiB.
    #[must_use]
    pub fn machine_memory(&self) -> ByteSize {
        let asked = self.limits.memory.unwrap_or(DEFAULT_MEMORY);
        ByteSize(asked.0.next_multiple_of(1 << 20))
    }

    pub(super) fn validate_machine(&self, report: &mut Report) {
        let Some(machine) = &self.machine else {
            return;
        };
        let enough = self.machine_memory() >= MIN_MEMORY;
        report.require(
            enough,
            "limits.memory",
            "at least 96M: a kernel needs as much",
        );
        let few = self
            .limits
            .cpus
            .is_none_or(|cpus| cpus.0 <= MAX_VCPUS * 1000);
        report.require(few, "limits.cpus", "at most 254 in a virtual machine");
        for (field, path) in [
            ("machine.kernel", &machine.kernel),
            ("machine.initrd", &machine.initrd),
        ] {
            let good = path.as_deref().is_none_or(inside_path);
            report.require(
                good,
                field,
                "must be an absolute path of the host without '..'",
            );
        }
        let append = machine.append.as_deref().unwrap_or_default();
        let good = append.len() <= MAX_APPEND_BYTES && !append.contains(['\0', '\n']);
        report.require(good, "machine.append", "one line of at most 2048 bytes");
        machine.validate_customization(report);
        self.refuse_what_needs_the_hosts_kernel(report);
    }

    /// What a container does with the host's kernel has no meaning for a guest with its own.
    fn refuse_what_needs_the_hosts_kernel(&self, report: &mut Report) {
        let shared = self.network == NetworkMode::Host;
        report.require(
            !shared,
            "network",
            "a virtual machine cannot share the host's network; name a network, or none",
        );
        report.require(
            self.security.user_namespace,
            "security.user_namespace",
            "the process of a virtual machine always has users of its own",
        );
        report.require(
            self.security.devices.is_empty(),
            "security.devices",
            "a virtual machine has devices of its own, not the host's",
        );
        let is_folder = |mount: &&Mount| !matches!(mount.source, MountSource::Tmpfs { .. });
        report.require(
            self.mounts.iter().filter(is_folder).count() <= MAX_FOLDERS,
            "mounts",
            "at most 16 folders, files and volumes in a virtual machine",
        );
    }
}
