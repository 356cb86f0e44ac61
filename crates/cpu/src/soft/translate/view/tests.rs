//! What is shown of some small blocks. Plans are compared with `plans.txt`: after a change that is
//! meant, run with `BERTH_BLESS=1` and read the difference. The host's code is the translator's to
//! change: of it is asked that it can be read, and that it is all there.

use iced_x86::code_asm::*;

use super::*;

const ADDRESS: u64 = 0x40_1000;

fn assembled(write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a).unwrap();
    a.assemble(ADDRESS).unwrap()
}

fn of(bytes: &[u8], width: Width) -> View {
    view(Request {
        bytes,
        address: ADDRESS,
        width,
        user: false,
    })
    .unwrap()
}

fn blocks() -> Vec<(&'static str, View)> {
    let long = |bytes: Vec<u8>| of(&bytes, Width::Code64);
    vec![
        (
            "loads and stores, of registers that are elsewhere too",
            long(assembled(|a| {
                let mut here = a.create_label();
                a.set_label(&mut here)?;
                a.mov(rax, ptr(rbx + rcx * 8 + 16))?;
                a.mov(ptr(r10), r9d)?;
                a.add(dword_ptr(here), 1)?;
                a.mov(rdx, rax)?;
                a.mov(r11, rdx)?;
                a.movaps(xmm1, ptr(rsp + 32))?;
                a.jmp(ADDRESS)
            })),
        ),
        (
            "a prologue and a call",
            long(assembled(|a| {
                a.endbr64()?;
                a.push(rbp)?;
                a.push(rbx)?;
                a.mov(rbp, rsp)?;
                a.call(ADDRESS + 0x1_0000)
            })),
        ),
        (
            "flags of the first addition are of no use",
            long(assembled(|a| {
                a.add(eax, ptr(rbx))?;
                a.add(ecx, ptr(rbx + 4))?;
                a.jc(ADDRESS + 0x100)
            })),
        ),
        (
            "a string, and what needs privilege",
            long(assembled(|a| {
                a.rep().movsb()?;
                a.div(rcx)?;
                a.cli()?;
                a.cpuid()?;
                a.pop(rbx)?;
                a.ret()
            })),
        ),
        (
            "a computed call",
            long(assembled(|a| a.call(qword_ptr(rax + 8)))),
        ),
        ("a retpoline", long(assembled(retpoline))),
        ("32-bit code", of(&[0x8b, 0x03, 0x40, 0xc3], Width::Code32)),
        ("16-bit code", of(&[0x8b, 0x07, 0xeb, 0xfc], Width::Code16)),
    ]
}

/// As Linux has it, of `r11`.
fn retpoline(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut trap = a.create_label();
    let mut set = a.create_label();
    a.call(set)?;
    a.set_label(&mut trap)?;
    a.pause()?;
    a.lfence()?;
    a.jmp(trap)?;
    a.set_label(&mut set)?;
    a.mov(ptr(rsp), r11)?;
    a.ret()
}

#[test]
fn plans_are_shown_as_they_are_written_down() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/soft/translate/view/plans.txt"
    );
    let shown: Vec<_> = blocks()
        .into_iter()
        .map(|(name, view)| format!("# {name}\n{}", view.plan()))
        .collect();
    let shown = shown.join("\n");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(path, &shown).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    assert_eq!(shown, expected);
}

#[test]
fn the_translation_is_whole_and_readable() {
    for (name, view) in blocks() {
        let lines: Vec<_> = view.host.iter().flat_map(|it| &it.lines).collect();
        assert_eq!(lines.is_empty(), view.width != Width::Code64, "{name}");
        let mut end = 0;
        for line in lines {
            assert_eq!(line.offset, end, "{name}\n{view}");
            assert_ne!(line.text, "(bad)", "{name}\n{view}");
            end += line.bytes.len();
        }
        // Each instruction, or the run it is in, is a piece, unless nothing is left of it.
        for (number, step) in view.steps.iter().enumerate() {
            let has_piece = view
                .host
                .iter()
                .any(|it| it.name.split([':', ' ']).next() == Some(&number.to_string()));
            match step.plan {
                Plan::Interpreted | Plan::LeftOut | Plan::InRun | Plan::Exit => {}
                _ => assert!(has_piece, "{name}: {number}\n{view}"),
            }
        }
    }
}

#[test]
fn what_is_referred_to_has_a_name() {
    let bytes = assembled(|a| {
        a.mov(r10, ptr(rbx))?;
        a.cpuid()?;
        a.jmp(ADDRESS)
    });
    let text = of(&bytes, Width::Code64).translation();
    for name in [
        "tlb.supervisor.read",
        "tlb.supervisor.host",
        "guest.r10",
        "mov r10, op1",
        "call handler",
        "slow_path",
        "jmp leave",
    ] {
        assert!(text.contains(name), "{name} in\n{text}");
    }
}

#[test]
fn a_block_ends_where_the_interpreter_ends_it() {
    let jump_and_more = of(&[0xeb, 0x00, 0x90], Width::Code64);
    assert_eq!(jump_and_more.steps.len(), 1);
    let nops = of(&[0x90; 200], Width::Code64);
    assert_eq!(nops.steps.len(), decode::MOST_OPS);
    assert_eq!(nops.exits, [Exit::Near(ADDRESS + 64)]);
    let incomplete = Request {
        bytes: &[0x48, 0xb8, 1],
        address: ADDRESS,
        width: Width::Code64,
        user: true,
    };
    assert_eq!(view(incomplete), Err(ViewError::Incomplete(64)));
    let at_the_end = Request {
        address: ADDRESS + 0xfff,
        bytes: &[0x90, 0x90],
        ..incomplete
    };
    assert_eq!(view(at_the_end).unwrap().steps.len(), 1);
}

proptest::proptest! {
    #[test]
    fn whatever_the_bytes_are_something_is_shown(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
        address in proptest::prelude::any::<u64>(),
        width in 0..3_usize,
        user in proptest::prelude::any::<bool>(),
    ) {
        let width = [Width::Code16, Width::Code32, Width::Code64][width];
        if let Ok(view) = view(Request { bytes: &bytes, address, width, user }) {
            assert!(view.to_string().lines().count() > view.steps.len());
        }
    }
}
