//! A vCPU on KVM: `KVM_RUN` again and again, with what it came back for done in between.

use std::sync::Arc;

use kvm_bindings::{KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{kick::KvmKick, partition::Shared, refused, state};
use crate::{CpuError, Exit, Kick, Vcpu, VcpuState};

/// A vCPU on KVM.
pub(super) struct KvmVcpu {
    index: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
    kick: Arc<KvmKick>,
    /// It stood still since it last ran.
    paused: bool,
}

/// What `KVM_RUN` came back for.
enum Why {
    /// Done already, or nothing: run on.
    Again,
    /// A port access, to be read from the shared page.
    Port,
    /// The processor shut down.
    Shutdown,
    /// The kernel gave up.
    Failed(String),
}

impl KvmVcpu {
    pub(super) fn new(shared: Arc<Shared>, index: u32) -> Result<Self, CpuError> {
        let fd = shared
            .vm
            .create_vcpu(u64::from(index))
            .map_err(refused("KVM_CREATE_VCPU"))?;
        // Before anything else: which registers exist depends on it.
        fd.set_cpuid2(&(shared.cpuid)(index))
            .map_err(refused("KVM_SET_CPUID2"))?;
        let mut vcpu = Self {
            index,
            fd,
            shared,
            kick: Arc::default(),
            paused: false,
        };
        vcpu.set_state(&VcpuState::reset(index))?;
        Ok(vcpu)
    }

    fn enter(&mut self) -> Result<Why, CpuError> {
        let bus = &self.shared.bus;
        Ok(match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Why::Port,
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.mmio_read(address, data);
                Why::Again
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.mmio_write(address, data);
                Why::Again
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                bus.end_of_interrupt(vector);
                Why::Again
            }
            Ok(VcpuExit::Shutdown) => Why::Shutdown,
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Why::Again,
            Ok(VcpuExit::FailEntry(reason, cpu)) => Why::Failed(format!(
                "anything: entry failed with {reason:#x} on CPU {cpu}"
            )),
            Ok(VcpuExit::InternalError) => {
                Why::Failed("an instruction the kernel does not emulate".to_owned())
            }
            Ok(other) => Why::Failed(format!("on: the kernel reports {other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Why::Again,
            Err(error) => return Err(refused("KVM_RUN")(error)),
        })
    }

    /// One port access, of several elements for string instructions; the data lie in the vCPU's
    /// shared pages.
    fn port(&mut self) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the kernel filled this member: the last exit was for a port.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let start = std::ptr::from_mut(run).cast::<u8>();
        for element in 0..io.count as usize {
            let offset = io.data_offset as usize + element * size;
            // SAFETY: the kernel placed `count` elements of `size` bytes there, within the pages
            // mapped for this vCPU, and looks at them only in the next KVM_RUN.
            let data = unsafe { std::slice::from_raw_parts_mut(start.add(offset), size) };
            match u32::from(io.direction) {
                KVM_EXIT_IO_IN => self.shared.bus.port_read(io.port, data),
                KVM_EXIT_IO_OUT => self.shared.bus.port_write(io.port, data),
                _ => {}
            }
        }
    }

    fn stopped_at(&self) -> u64 {
        self.fd.get_regs().map_or(0, |registers| registers.rip)
    }
}

impl Vcpu for KvmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn run(&mut self) -> Result<Exit, CpuError> {
        if std::mem::take(&mut self.paused) {
            // So that the guest's watchdogs do not take the pause for a hang; refused for a guest that
            // has no kvmclock (api.rst, 4.71).
            let _without_clock = self.fd.kvmclock_ctrl();
        }
        let kick = Arc::clone(&self.kick);
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        let _turn = kick.begin(immediate_exit);
        loop {
            if kick.take() {
                // What was begun must be completed before the state is whole (api.rst, 5): a call
                // that is to return at once does only that.
                self.fd.set_kvm_immediate_exit(1);
                let _completed = self.fd.run();
                self.fd.set_kvm_immediate_exit(0);
                self.paused = true;
                return Ok(Exit::Kicked);
            }
            match self.enter()? {
                Why::Again => self.fd.set_kvm_immediate_exit(0),
                Why::Port => self.port(),
                Why::Shutdown => return Ok(Exit::Shutdown),
                Why::Failed(what) => {
                    return Err(CpuError::Unsupported {
                        index: self.index,
                        what,
                        rip: self.stopped_at(),
                    });
                }
            }
        }
    }

    fn state(&self) -> Result<VcpuState, CpuError> {
        state::read(&self.shared.kvm, &self.fd)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), CpuError> {
        state::write(self.index, &self.fd, state)
    }
}
