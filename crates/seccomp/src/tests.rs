//! What the compiler promises, against a direct reading of the policy, against libseccomp, and
//! against the kernel.

mod kernel;
mod oracle;

use std::borrow::Cow;

use proptest::prelude::*;

use crate::interpret::{Call, run};
use crate::*;

/// The policy's verdict on a call, read off without any compiling.
fn verdict(policy: &Policy, arch: Arch, number: u32, arguments: [u64; 6]) -> u32 {
    let width = |v: u64| if arch.is_64_bit() { v } else { v & 0xffff_ffff };
    let holds = |a: &Argument| {
        let (x, value) = (width(arguments[usize::from(a.index)]), width(a.value));
        match a.operator {
            Operator::NotEqual => x != value,
            Operator::Less => x < value,
            Operator::LessOrEqual => x <= value,
            Operator::Equal => x == value,
            Operator::GreaterOrEqual => x >= value,
            Operator::Greater => x > value,
            Operator::MaskedEqual => x & value == width(a.value_two),
        }
    };
    let about = |rule: &&Rule| {
        rule.action != policy.default_action
            && rule
                .names
                .iter()
                .any(|name| syscalls::number(arch, name) == Some(number))
    };
    let rules: Vec<&Rule> = policy.rules.iter().filter(about).collect();
    if let Some(rule) = rules.iter().find(|rule| rule.arguments.is_empty()) {
        return rule.action.value();
    }
    let matches = |rule: &&&Rule| {
        let mut seen = [0; 6];
        rule.arguments
            .iter()
            .for_each(|a| seen[usize::from(a.index)] += 1);
        match seen.iter().any(|&n| n > 1) {
            true => rule.arguments.iter().any(holds),
            false => rule.arguments.iter().all(holds),
        }
    };
    if let Some(rule) = rules.iter().find(matches) {
        return rule.action.value();
    }
    let names = policy.rules.iter().flat_map(|rule| &rule.names);
    let known: Vec<u32> = names
        .filter_map(|name| syscalls::number(arch, name))
        .collect();
    // ARM's private calls do not make all below them known.
    let below = known
        .iter()
        .filter(|&&n| n < 0xf_0000)
        .max()
        .map_or(0, |n| n + 1);
    let is_new = !known.is_empty() && number >= below && !known.contains(&number);
    match policy.new_calls {
        NewCalls::Enosys if is_new && !policy.default_action.lets_pass() => {
            Action::Errno(38).value()
        }
        _ => policy.default_action.value(),
    }
}

fn call(arch: Arch, number: u32, arguments: [u64; 6]) -> Call {
    let marker = if arch == Arch::X32 { 0x4000_0000 } else { 0 };
    Call {
        arch: arch.audit(),
        number: number | marker,
        arguments,
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::KillProcess),
        Just(Action::Log),
        (0u16..100).prop_map(Action::Errno),
        (0u16..5).prop_map(Action::Trace),
    ]
}

/// Values close to each other and to word boundaries, so that comparisons matter.
fn any_value() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..4).prop_map(|(high, low)| high << 32 | [0, 1, 2, 0xffff_ffff][low as usize])
}

fn any_argument() -> impl Strategy<Value = Argument> {
    use Operator::*;
    let operators = [
        NotEqual,
        Less,
        LessOrEqual,
        Equal,
        GreaterOrEqual,
        Greater,
        MaskedEqual,
    ];
    (0u8..3, 0..7usize, any_value(), any_value()).prop_map(move |(index, i, value, value_two)| {
        Argument {
            index,
            operator: operators[i],
            value,
            value_two: value_two & value,
        }
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let names = proptest::sample::subsequence(syscalls::names().collect::<Vec<_>>(), 1..40);
    let arguments = proptest::collection::vec(any_argument(), 0..4);
    let rule = (names, any_action(), arguments).prop_map(|(names, action, arguments)| Rule {
        names: names.into_iter().map(Cow::Borrowed).collect(),
        action,
        arguments,
    });
    let rules = proptest::collection::vec(rule, 0..8);
    (any_action(), rules, any::<bool>()).prop_map(|(default_action, rules, enosys)| Policy {
        default_action,
        architectures: Arch::ALL.to_vec(),
        rules,
        flags: Vec::new(),
        new_calls: if enosys {
            NewCalls::Enosys
        } else {
            NewCalls::Default
        },
        listener_path: None,
        listener_metadata: None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn programs_decide_every_call_as_the_policy_reads(
        policy in any_policy(),
        samples in proptest::collection::vec((any_value(), any_value(), any_value()), 4),
    ) {
        let program = match compile(&policy) {
            Ok(program) => program,
            Err(CompileError::TooLong { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        for arch in Arch::ALL {
            for number in (0..600).chain(0xf_0000..0xf_0008) {
                for &(a, b, c) in &samples {
                    let arguments = [a, b, c, 0, 0, 0];
                    let got = run(&program.code, &call(arch, number, arguments));
                    prop_assert_eq!(got, verdict(&policy, arch, number, arguments), "{:?} {} {:x?}", arch, number, arguments);
                }
            }
        }
    }

    #[test]
    fn hostile_json_never_panics(
        text in r#"\{"defaultAction":"SCMP_ACT_(ALLOW|ERRNO|X)"(,"(syscalls|flags|architectures)":(null|\[\]|\[(null|\{"names":\[("read")?\],"action":"SCMP_ACT_KILL","args":(null|\[\{"index":[0-9]{1,12},"value":[0-9]{1,22},"op":"SCMP_CMP_(EQ|NO)"\}\])\})\]|7))?\}"#,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        fuzzing::fuzz(text.as_bytes());
        fuzzing::fuzz(&bytes);
    }
}

#[test]
fn other_architectures_are_killed_and_skipped_calls_are_not() {
    let policy = Policy {
        architectures: vec![Arch::X86_64],
        ..default_profile::<&str>(&[])
    };
    let code = compile(&policy).unwrap().code;
    let kill = Action::KillProcess.value();
    let at = |arch: u32, number| {
        run(
            &code,
            &Call {
                arch,
                number,
                arguments: [0; 6],
            },
        )
    };
    assert_eq!(at(Arch::X86.audit(), 1), kill);
    assert_eq!(at(0xdead, 0), kill);
    assert_eq!(
        at(Arch::X86_64.audit(), 0x4000_0000),
        kill,
        "x32 was not allowed"
    );
    assert_eq!(
        at(Arch::X86_64.audit(), u32::MAX),
        Action::Errno(1).value(),
        "a tracer's skip"
    );
    assert_eq!(at(Arch::X86_64.audit(), 0), Action::Allow.value());
}

#[test]
fn the_default_profile_says_what_it_should() {
    let code = |caps: &[&str]| compile(&default_profile(caps)).unwrap().code;
    let (plain, admin) = (code(&[]), code(&["CAP_SYS_ADMIN"]));
    assert!(
        compile(&default_profile::<&str>(&[]))
            .unwrap()
            .unknown
            .is_empty()
    );
    let ask = |code: &[Instruction], name, a| {
        let number = number(Arch::X86_64, name).unwrap();
        run(code, &call(Arch::X86_64, number, [a, 0, 0, 0, 0, 0]))
    };
    let (allow, eperm) = (Action::Allow.value(), Action::Errno(1).value());
    assert_eq!(ask(&plain, "openat", 0), allow);
    assert_eq!(ask(&plain, "mount", 0), eperm);
    assert_eq!(ask(&admin, "mount", 0), allow);
    assert_eq!(ask(&plain, "clone", 0x11), allow);
    assert_eq!(ask(&plain, "clone", 0x1000_0000), eperm, "a user namespace");
    assert_eq!(ask(&plain, "clone3", 0), Action::Errno(38).value());
    assert_eq!(ask(&admin, "clone3", 0), allow);
    for (family, want) in [
        (2, allow),
        (38, eperm),
        (39, allow),
        (40, eperm),
        (41, allow),
    ] {
        assert_eq!(ask(&plain, "socket", family), want, "family {family}");
    }
    assert_eq!(ask(&plain, "personality", 0xffff_ffff), allow);
    assert_eq!(ask(&plain, "personality", 0x40000), eperm);
    assert_eq!(ask(&plain, "kexec_load", 0), eperm);
    assert_eq!(
        run(&plain, &call(Arch::X86_64, 999, [0; 6])),
        Action::Errno(38).value()
    );
}

#[test]
fn oci_json_is_taken_with_its_oddities_and_refused_with_reasons() {
    let parse = |text: &str| serde_json::from_str::<Policy>(text).map_err(|e| e.to_string());
    let policy = parse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86","SCMP_ARCH_MIPS"],
        "flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","nonsense"],"action":"SCMP_ACT_ALLOW","args":null},
        {"names":["socket"],"action":"SCMP_ACT_TRACE","errnoRet":5,"args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    )
    .unwrap();
    assert_eq!(policy.default_action, Action::Errno(38));
    assert_eq!(policy.architectures, [Arch::X86]);
    assert_eq!(policy.rules[1].action, Action::Trace(5));
    assert_eq!(compile(&policy).unwrap().unknown, ["nonsense"]);
    for (text, says) in [
        (r#"{"defaultAction":"ALLOW"}"#, "defaultAction"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "NOTIFY"),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
            "70000",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#,
            "names no",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "index 6",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}"#,
            "flags",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

/// Many distinct conditions: long programs jump further than 255, and too long ones are refused.
#[test]
fn far_jumps_are_right_and_the_kernel_limit_is_kept() {
    let names: Vec<_> = syscalls::names()
        .filter(|n| syscalls::number(Arch::X86_64, n).is_some())
        .collect();
    let rules = |per_call: u64, calls: usize| -> Vec<Rule> {
        let one = |(i, name): (usize, &&'static str), value| Rule {
            names: vec![Cow::Borrowed(*name)],
            action: Action::Errno((i % 50) as u16 + 2),
            arguments: vec![Argument {
                index: 0,
                operator: Operator::Equal,
                value,
                value_two: 0,
            }],
        };
        let all = names.iter().take(calls).enumerate();
        all.flat_map(|entry| (0..per_call).map(move |v| one(entry, v << 33 | 7)))
            .collect()
    };
    let policy = |rules| Policy {
        rules,
        architectures: vec![Arch::X86_64],
        default_action: Action::Allow,
        ..default_profile::<&str>(&[])
    };
    let long = policy(rules(3, 200));
    let code = compile(&long).unwrap().code;
    assert!(code.len() > 2000);
    for number in 0..480 {
        for value in [0, 7, 1 << 33 | 7, 2 << 33 | 7, 3 << 33 | 7] {
            let arguments = [value, 0, 0, 0, 0, 0];
            let got = run(&code, &call(Arch::X86_64, number, arguments));
            assert_eq!(got, verdict(&long, Arch::X86_64, number, arguments));
        }
    }
    assert!(matches!(
        compile(&policy(rules(10, 300))),
        Err(CompileError::TooLong { .. })
    ));
}
