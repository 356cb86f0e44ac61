//! Device rules of cgroup v2: an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE` per group.
//!
//! [`program`] is a pure compiler; [`attach`] is the one place of this crate that speaks `bpf(2)`.
//! Source: Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Access, DeviceKind, Reduced};

/// One eBPF instruction: operation, registers, jump offset, constant.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    op: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE_CONSTANT: u8 = 0xb4;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Registers: the context (then scratch), and what is taken out of it.
const R0: u8 = 0;
const R1: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn insn(op: u8, dst: u8, src: u8, offset: i16, constant: i32) -> Insn {
    Insn {
        op,
        registers: dst | src << 4,
        offset,
        constant,
    }
}

/// Compiles rules to a program that returns 1 to allow and 0 to deny.
pub(crate) fn program(rules: &Reduced) -> Vec<Insn> {
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | kind */, major, minor }
    let mut code = vec![
        insn(LOAD_WORD, KIND, R1, 0, 0),
        insn(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        insn(AND, KIND, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        insn(LOAD_WORD, MAJOR, R1, 4, 0),
        insn(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    for rule in &rules.exceptions {
        let mut tests = Vec::with_capacity(6);
        match rule.kind {
            DeviceKind::All => {}
            DeviceKind::Block => tests.push(insn(JUMP_NOT_EQUAL, KIND, 0, 0, 1)),
            DeviceKind::Char => tests.push(insn(JUMP_NOT_EQUAL, KIND, 0, 0, 2)),
        }
        if rule.access != Access::ALL {
            tests.push(insn(MOVE_REGISTER, R1, ACCESS, 0, 0));
            tests.push(insn(AND, R1, 0, 0, i32::from(rule.access.bits())));
            // Allowed only if all that is asked for is covered; denied if any of it is.
            tests.push(match rules.allow_by_default {
                false => insn(JUMP_NOT_EQUAL_REGISTER, R1, ACCESS, 0, 0),
                true => insn(JUMP_EQUAL, R1, 0, 0, 0),
            });
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            tests.extend(number.map(|n| insn(JUMP_NOT_EQUAL, register, 0, 0, n as i32)));
        }
        let verdict = i32::from(!rules.allow_by_default);
        tests.push(insn(MOVE_CONSTANT, R0, 0, 0, verdict));
        tests.push(insn(EXIT, 0, 0, 0, 0));
        // Every failed test jumps over the rest of this rule.
        let len = tests.len();
        for (i, test) in tests.iter_mut().enumerate() {
            if matches!(
                test.op,
                JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER
            ) {
                test.offset = (len - 1 - i) as i16;
            }
        }
        code.append(&mut tests);
    }
    code.push(insn(
        MOVE_CONSTANT,
        R0,
        0,
        0,
        i32::from(rules.allow_by_default),
    ));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// The most programs looked for on one group: the kernel's own limit.
const MAX_PROGRAMS: usize = 64;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

fn bpf<T>(command: i32, attr: &mut T) -> Result<i32, Errno> {
    let size = size_of::<T>();
    // SAFETY: `attr` is a live, initialized structure of `size` bytes in the layout of union
    // bpf_attr for `command`; the addresses inside it (code, license, ids) are those of buffers
    // that the callers keep alive over the call and whose lengths they state truthfully.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if result < 0 {
        let code = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(code));
    }
    Ok(result as i32)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just returned this new descriptor to us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads `code` and makes it the only device program attached to the group directory `group`.
/// The new one is in force before the old ones go, so access never widens in between.
pub(crate) fn attach(group: BorrowedFd<'_>, code: &[Insn]) -> Result<(), Errno> {
    let license = c"Dual MIT/GPL";
    let mut load = LoadAttr {
        kind: TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    let program = owned(bpf(PROG_LOAD, &mut load)?);
    let old = attached(group)?;
    let target = group.as_raw_fd() as u32;
    let mut attr = AttachAttr {
        target,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &mut attr)?;
    for program in old {
        let program = program.as_raw_fd() as u32;
        bpf(
            PROG_DETACH,
            &mut AttachAttr {
                target,
                program,
                kind: ATTACH_CGROUP_DEVICE,
                flags: 0,
            },
        )?;
    }
    Ok(())
}

/// The device programs attached to the group itself.
fn attached(group: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = QueryAttr {
        target: group.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = (query.count as usize).min(MAX_PROGRAMS);
    ids[..count]
        .iter()
        .map(|&id| {
            bpf(
                PROG_GET_FD_BY_ID,
                &mut IdAttr {
                    id,
                    ..IdAttr::default()
                },
            )
            .map(owned)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceRule;

    /// Runs the subset of eBPF that [`program`] emits, for one access to one device.
    fn run(code: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0u32; 8];
        let mut pc = 0usize;
        loop {
            let i = code[pc];
            let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let constant = i.constant as u32;
            pc += 1;
            let jump = match i.op {
                LOAD_WORD => {
                    r[dst] = context[i.offset as usize / 4];
                    false
                }
                AND => {
                    r[dst] &= constant;
                    false
                }
                SHIFT_RIGHT => {
                    r[dst] >>= constant;
                    false
                }
                MOVE_REGISTER => {
                    r[dst] = r[src];
                    false
                }
                MOVE_CONSTANT => {
                    r[dst] = constant;
                    false
                }
                JUMP_EQUAL => r[dst] == constant,
                JUMP_NOT_EQUAL => r[dst] != constant,
                JUMP_NOT_EQUAL_REGISTER => r[dst] != r[src],
                EXIT => return r[0],
                op => panic!("unknown operation {op:#x}"),
            };
            if jump {
                pc += i.offset as usize;
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let allow = |kind, major, minor, access| DeviceRule {
            allow: true,
            kind,
            major,
            minor,
            access: Access::parse(access).unwrap(),
        };
        let rules = [
            DeviceRule::DENY_ALL,
            allow(DeviceKind::Char, Some(1), Some(3), "rw"),
            allow(DeviceKind::Block, Some(8), None, "r"),
            allow(DeviceKind::Char, None, None, "m"),
        ];
        let code = program(&Reduced::new(&rules));
        let ask = |kind, access, major, minor| run(&code, kind, access, major, minor);
        assert_eq!(ask(2, 6, 1, 3), 1, "null read and write");
        assert_eq!(ask(2, 7, 1, 3), 0, "no single rule covers all of rwm");
        assert_eq!(ask(2, 1, 250, 9), 1, "mknod of any character device");
        assert_eq!(ask(1, 1, 8, 0), 0, "mknod of a block device");
        assert_eq!(ask(1, 2, 8, 77), 1, "read of any sd");
        assert_eq!(ask(1, 4, 8, 77), 0, "write of any sd");
        assert_eq!(ask(2, 2, 1, 5), 0, "read of another one");

        let open = DeviceRule {
            allow: true,
            ..DeviceRule::DENY_ALL
        };
        let deny = DeviceRule {
            allow: false,
            ..allow(DeviceKind::Block, Some(8), None, "w")
        };
        let code = program(&Reduced::new(&[open, deny]));
        assert_eq!(run(&code, 1, 6, 8, 0), 0, "a part of it is denied");
        assert_eq!(run(&code, 1, 2, 8, 0), 1);
        assert_eq!(run(&code, 2, 7, 1, 1), 1);
    }
}
