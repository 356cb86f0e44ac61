//! libseccomp as the oracle: the same policy through both, and every call through both programs.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use crate::interpret::{Call, run};
use crate::*;

/// `struct scmp_arg_cmp` of seccomp.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Compare {
    index: c_uint,
    operator: c_int,
    a: u64,
    b: u64,
}

/// The functions of libseccomp.so.2 that are needed.
struct Library {
    init: unsafe extern "C" fn(u32) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
    arch_add: unsafe extern "C" fn(*mut c_void, u32) -> c_int,
    resolve: unsafe extern "C" fn(*const c_char) -> c_int,
    rule_add: unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Compare) -> c_int,
    export: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
}

impl Library {
    fn open() -> Option<Library> {
        // SAFETY: loading libseccomp runs no code of ours and its constructors are harmless.
        let handle = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            eprintln!("SKIP oracle: libseccomp.so.2 is not installed");
            return None;
        }
        let symbol = |name: &std::ffi::CStr| {
            // SAFETY: `handle` is open and `name` ends in NUL.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "{name:?}");
            address
        };
        // SAFETY: the addresses are those functions, whose C prototypes in seccomp.h have these
        // types (seccomp_rule_add_array takes its conditions by pointer and count).
        unsafe {
            Some(Library {
                init: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32) -> *mut c_void>(
                    symbol(c"seccomp_init"),
                ),
                release: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(
                    symbol(c"seccomp_release"),
                ),
                arch_add: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32) -> c_int,
                >(symbol(c"seccomp_arch_add")),
                resolve: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const c_char) -> c_int,
                >(symbol(c"seccomp_syscall_resolve_name")),
                rule_add: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Compare) -> c_int,
                >(symbol(c"seccomp_rule_add_array")),
                export: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
                >(symbol(c"seccomp_export_bpf")),
            })
        }
    }

    /// `policy` as libseccomp compiles it when a runtime drives it the usual way.
    fn compile(&self, policy: &Policy) -> Vec<Instruction> {
        let mut out = memfd();
        // SAFETY: `context` comes from init, is used by the library's own functions only and
        // released at the end; names end in NUL and conditions are as many as stated.
        unsafe {
            let context = (self.init)(policy.default_action.value());
            assert!(!context.is_null());
            for &arch in &policy.architectures {
                let token = if arch == Arch::X32 {
                    0x4000_003e
                } else {
                    arch.audit()
                };
                let added = (self.arch_add)(context, token);
                assert!(added == 0 || added == -libc::EEXIST, "{arch:?}: {added}");
            }
            for rule in policy
                .rules
                .iter()
                .filter(|r| r.action != policy.default_action)
            {
                for name in &rule.names {
                    let number = (self.resolve)(CString::new(&**name).unwrap().as_ptr());
                    if number == -1 {
                        continue;
                    }
                    let conditions: Vec<Compare> = rule.arguments.iter().map(condition).collect();
                    let count = conditions.len() as c_uint;
                    let added = (self.rule_add)(
                        context,
                        rule.action.value(),
                        number,
                        count,
                        conditions.as_ptr(),
                    );
                    assert_eq!(added, 0, "{name} {rule:?}");
                }
            }
            assert_eq!((self.export)(context, out.as_raw_fd()), 0);
            (self.release)(context);
        }
        let mut bytes = Vec::new();
        out.rewind().unwrap();
        out.read_to_end(&mut bytes).unwrap();
        let word = |b: &[u8]| u32::from_ne_bytes(b.try_into().unwrap());
        let decode = |b: &[u8]| Instruction {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: word(&b[4..]),
        };
        bytes.chunks_exact(8).map(decode).collect()
    }
}

fn memfd() -> std::fs::File {
    use std::os::fd::FromRawFd;
    // SAFETY: a fresh descriptor, owned by nobody else.
    unsafe {
        let fd = libc::memfd_create(c"filter".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        std::fs::File::from_raw_fd(fd)
    }
}

fn condition(a: &Argument) -> Compare {
    use Operator::*;
    let operator = match a.operator {
        NotEqual => 1,
        Less => 2,
        LessOrEqual => 3,
        Equal => 4,
        GreaterOrEqual => 5,
        Greater => 6,
        MaskedEqual => 7,
    };
    Compare {
        index: a.index.into(),
        operator,
        a: a.value,
        b: a.value_two,
    }
}

/// libseccomp kills the thread where we kill the process, for calls of foreign architectures.
fn same(ours: u32, theirs: u32) -> bool {
    ours == theirs || (ours == Action::KillProcess.value() && theirs == Action::KillThread.value())
}

fn compare(library: &Library, policy: &Policy, values: &[u64]) {
    let numbers = (0..470)
        .chain(0x4000_0000..0x4000_0230)
        .chain(0xf_0000..0xf_0008);
    compare_on(library, policy, values, numbers.chain([u32::MAX]));
}

fn compare_on(
    library: &Library,
    policy: &Policy,
    values: &[u64],
    numbers: impl Iterator<Item = u32> + Clone,
) {
    let ours = compile(policy).unwrap().code;
    let theirs = library.compile(policy);
    let arches = [0xdead].into_iter().chain(Arch::ALL.map(Arch::audit));
    for arch in arches {
        for number in numbers.clone() {
            for &value in values {
                for arguments in [[value; 6], [value, 0, 9, 0, 0, 0], [16, 1, value, 0, 0, 0]] {
                    let call = Call {
                        arch,
                        number,
                        arguments,
                    };
                    let (a, b) = (run(&ours, &call), run(&theirs, &call));
                    assert!(same(a, b), "{call:x?}: ours {a:#x}, libseccomp {b:#x}");
                }
            }
        }
    }
}

const VALUES: [u64; 14] = [
    0,
    1,
    8,
    9,
    16,
    38,
    39,
    40,
    0x11,
    0x1000_0000,
    0x2_0008,
    0xffff_ffff,
    1 << 32,
    (1 << 32) | 38,
];

/// The names both know: this libseccomp may be older than our table.
fn only_old_names(policy: &mut Policy, library: &Library) {
    for rule in &mut policy.rules {
        rule.names.retain(|name| {
            let name = CString::new(&**name).unwrap();
            // SAFETY: a C string goes in, a number comes out.
            unsafe { (library.resolve)(name.as_ptr()) != -1 }
        });
    }
    policy.rules.retain(|rule| !rule.names.is_empty());
}

#[test]
fn the_default_profile_decides_every_call_as_libseccomp_would() {
    let Some(library) = Library::open() else {
        return;
    };
    let families = [
        Arch::X86_64.family(),
        Arch::Aarch64.family(),
        Arch::Riscv64.family(),
    ];
    for (i, family) in families.into_iter().enumerate() {
        for caps in [&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"][..], &[]]
            .into_iter()
            .take(2 - i.min(1))
        {
            let mut policy = default_profile(caps);
            policy.new_calls = NewCalls::Default;
            policy.architectures = family.to_vec();
            only_old_names(&mut policy, &library);
            compare(&library, &policy, &VALUES);
        }
    }
}

#[test]
fn the_profile_of_podman_decides_as_libseccomp_would() {
    let Some(library) = Library::open() else {
        return;
    };
    let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
        return eprintln!("SKIP podman profile: /usr/share/containers/seccomp.json is not there");
    };
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let unconditional = |s: &&serde_json::Value| s["includes"]["caps"].is_null();
    let rules = json["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(unconditional);
    let json = serde_json::json!({
        "defaultAction": json["defaultAction"],
        "defaultErrnoRet": json["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules.cloned().collect::<Vec<_>>(),
    });
    let mut policy: Policy = serde_json::from_value(json).unwrap();
    only_old_names(&mut policy, &library);
    compare(&library, &policy, &VALUES);
}

/// One rule per operator, on values around word boundaries.
#[test]
fn comparisons_of_64_bits_are_those_of_libseccomp() {
    use Operator::*;
    let Some(library) = Library::open() else {
        return;
    };
    let operators = [
        NotEqual,
        Less,
        LessOrEqual,
        Equal,
        GreaterOrEqual,
        Greater,
        MaskedEqual,
    ];
    for value in [0, 1, 0xffff_ffff, 1 << 32, (1 << 32) | 1, u64::MAX] {
        for (i, operator) in operators.into_iter().enumerate() {
            let value_two = value & 0xffff_0000_0000_0001;
            let argument = |index| Argument {
                index,
                operator,
                value,
                value_two,
            };
            let policy = Policy {
                default_action: Action::Errno(1),
                architectures: vec![Arch::X86_64, Arch::Aarch64, Arch::X86],
                rules: vec![Rule {
                    names: vec!["read".into(), "openat".into()],
                    action: Action::Allow,
                    arguments: vec![argument(0), argument(2)][..1 + i % 2].to_vec(),
                }],
                flags: Vec::new(),
                new_calls: NewCalls::Default,
                listener_path: None,
                listener_metadata: None,
            };
            let near = [
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value ^ (1 << 40),
                0,
                9,
            ];
            // read and openat on the three, and a neighbour.
            compare_on(
                &library,
                &policy,
                &near,
                [0, 3, 56, 63, 257, 295, 1].into_iter(),
            );
        }
    }
}
