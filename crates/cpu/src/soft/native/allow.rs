//! Which instructions may be executed by the host as they are: a list of what is known to be
//! harmless, by feature and mnemonic. Everything else is refused.

use std::sync::OnceLock;

use iced_x86::{CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, Register};

use crate::soft::vector::Unit;

/// What the host must be asked for, and whether it has it.
type Feature = (CpuidFeature, fn() -> bool);

const FEATURES: &[Feature] = &[
    (CpuidFeature::FPU, || true),
    (CpuidFeature::FPU287, || true),
    (CpuidFeature::FPU387, || true),
    (CpuidFeature::CMOV, || true),
    (CpuidFeature::MMX, || true),
    (CpuidFeature::SSE, || true),
    (CpuidFeature::SSE2, || true),
    (CpuidFeature::SSE3, || is_x86_feature_detected!("sse3")),
    (CpuidFeature::SSSE3, || is_x86_feature_detected!("ssse3")),
    (CpuidFeature::SSE4_1, || is_x86_feature_detected!("sse4.1")),
    (CpuidFeature::SSE4_2, || is_x86_feature_detected!("sse4.2")),
    (CpuidFeature::POPCNT, || is_x86_feature_detected!("popcnt")),
    (CpuidFeature::LZCNT, || is_x86_feature_detected!("lzcnt")),
    (CpuidFeature::MOVBE, || is_x86_feature_detected!("movbe")),
    (CpuidFeature::BMI1, || is_x86_feature_detected!("bmi1")),
    (CpuidFeature::BMI2, || is_x86_feature_detected!("bmi2")),
    (CpuidFeature::ADX, || is_x86_feature_detected!("adx")),
    (CpuidFeature::AES, || is_x86_feature_detected!("aes")),
    (CpuidFeature::PCLMULQDQ, || {
        is_x86_feature_detected!("pclmulqdq")
    }),
    (CpuidFeature::SHA, || is_x86_feature_detected!("sha")),
    (CpuidFeature::AVX, || is_x86_feature_detected!("avx")),
    (CpuidFeature::AVX2, || is_x86_feature_detected!("avx2")),
    (CpuidFeature::FMA, || is_x86_feature_detected!("fma")),
    (CpuidFeature::F16C, || is_x86_feature_detected!("f16c")),
];

/// Whether instructions of this feature are executed: they are known here, and the host has them.
/// What a guest's CPUID may show is bounded by this.
#[must_use]
pub fn supports(feature: CpuidFeature) -> bool {
    static HOST: OnceLock<Vec<CpuidFeature>> = OnceLock::new();
    HOST.get_or_init(|| {
        FEATURES
            .iter()
            .filter(|(_, has)| has())
            .map(|&(feature, _)| feature)
            .collect()
    })
    .contains(&feature)
}

/// Whether the host may execute the instruction itself: it computes from registers and at most one
/// operand in memory, named explicitly, and does nothing else.
pub(in crate::soft) fn is_computation(instruction: &Instruction) -> bool {
    let code = instruction.code();
    matches!(
        instruction.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX
    ) && code.cpuid_features().iter().all(|&it| supports(it))
        && code.flow_control() == FlowControl::Next
        && !code.is_privileged()
        && !code.is_stack_instruction()
        && !instruction.is_vsib()
        && !is_special(code.mnemonic())
}

/// Instructions of the features above that are no mere computation, or that cost more by the host
/// than written in Rust.
fn is_special(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        // Fences and hints.
        M::Lfence | M::Mfence | M::Sfence
            | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2
            // Control registers.
            | M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr
            | M::Fldcw | M::Fnstcw | M::Fnstsw | M::Fnclex | M::Fninit
            | M::Fldenv | M::Fnstenv | M::Frstor | M::Fnsave
            | M::Fnsetpm | M::Fneni | M::Fndisi
            // Forms of two instructions.
            | M::Fclex | M::Finit | M::Fsave | M::Fstcw | M::Fstenv | M::Fstsw
            | M::Feni | M::Fdisi | M::Fsetpm
            // Registers they do not name.
            | M::Emms | M::Vzeroall | M::Vzeroupper
            // Operands they do not name, or only touch in parts.
            | M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu
            | M::Vmaskmovpd | M::Vmaskmovps | M::Vpmaskmovd | M::Vpmaskmovq
    )
}

/// Which unit's rules say whether it may be executed; `None` when it uses registers of none.
pub(super) fn unit(instruction: &Instruction, registers: &[Register]) -> Option<Unit> {
    let has = |class: fn(Register) -> bool| registers.iter().any(|&it| class(it));
    if registers
        .iter()
        .any(|it| !(it.is_gpr() || it.is_vector_register() || it.is_st() || it.is_mm()))
    {
        return None;
    }
    let features = instruction.cpuid_features();
    Some(
        if features.contains(&CpuidFeature::FPU)
            || features.contains(&CpuidFeature::FPU287)
            || features.contains(&CpuidFeature::FPU387)
        {
            Unit::X87
        } else if has(Register::is_mm) {
            Unit::Mmx
        } else if has(Register::is_vector_register) || uses_mxcsr(instruction) {
            match instruction.encoding() {
                EncodingKind::VEX => Unit::Avx,
                _ => Unit::Sse,
            }
        } else {
            Unit::Integer
        },
    )
}

/// Whether it obeys `mxcsr` or sets flags in it.
pub(in crate::soft) fn uses_mxcsr(instruction: &Instruction) -> bool {
    let features = instruction.cpuid_features();
    features.contains(&CpuidFeature::FMA)
        || features.contains(&CpuidFeature::F16C)
        || is_float_arithmetic(instruction.mnemonic())
}

#[rustfmt::skip]
fn is_float_arithmetic(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Addps | M::Addpd | M::Addss | M::Addsd | M::Vaddps | M::Vaddpd | M::Vaddss | M::Vaddsd
        | M::Subps | M::Subpd | M::Subss | M::Subsd | M::Vsubps | M::Vsubpd | M::Vsubss | M::Vsubsd
        | M::Mulps | M::Mulpd | M::Mulss | M::Mulsd | M::Vmulps | M::Vmulpd | M::Vmulss | M::Vmulsd
        | M::Divps | M::Divpd | M::Divss | M::Divsd | M::Vdivps | M::Vdivpd | M::Vdivss | M::Vdivsd
        | M::Minps | M::Minpd | M::Minss | M::Minsd | M::Vminps | M::Vminpd | M::Vminss | M::Vminsd
        | M::Maxps | M::Maxpd | M::Maxss | M::Maxsd | M::Vmaxps | M::Vmaxpd | M::Vmaxss | M::Vmaxsd
        | M::Cmpps | M::Cmppd | M::Cmpss | M::Cmpsd | M::Vcmpps | M::Vcmppd | M::Vcmpss | M::Vcmpsd
        | M::Sqrtps | M::Sqrtpd | M::Sqrtss | M::Sqrtsd
        | M::Vsqrtps | M::Vsqrtpd | M::Vsqrtss | M::Vsqrtsd
        | M::Roundps | M::Roundpd | M::Roundss | M::Roundsd
        | M::Vroundps | M::Vroundpd | M::Vroundss | M::Vroundsd
        | M::Addsubps | M::Addsubpd | M::Vaddsubps | M::Vaddsubpd
        | M::Haddps | M::Haddpd | M::Hsubps | M::Hsubpd
        | M::Vhaddps | M::Vhaddpd | M::Vhsubps | M::Vhsubpd
        | M::Dpps | M::Dppd | M::Vdpps | M::Vdppd
        | M::Comiss | M::Comisd | M::Vcomiss | M::Vcomisd
        | M::Ucomiss | M::Ucomisd | M::Vucomiss | M::Vucomisd
        | M::Cvtdq2pd | M::Cvtdq2ps | M::Cvtpd2dq | M::Cvtpd2ps | M::Cvtps2dq | M::Cvtps2pd
        | M::Cvtsd2si | M::Cvtsd2ss | M::Cvtsi2sd | M::Cvtsi2ss | M::Cvtss2sd | M::Cvtss2si
        | M::Cvttpd2dq | M::Cvttps2dq | M::Cvttsd2si | M::Cvttss2si
        | M::Cvtpi2ps | M::Cvtpi2pd | M::Cvtps2pi | M::Cvtpd2pi | M::Cvttps2pi | M::Cvttpd2pi
        | M::Vcvtdq2pd | M::Vcvtdq2ps | M::Vcvtpd2dq | M::Vcvtpd2ps | M::Vcvtps2dq | M::Vcvtps2pd
        | M::Vcvtsd2si | M::Vcvtsd2ss | M::Vcvtsi2sd | M::Vcvtsi2ss | M::Vcvtss2sd | M::Vcvtss2si
        | M::Vcvttpd2dq | M::Vcvttps2dq | M::Vcvttsd2si | M::Vcvttss2si
    )
}

/// The alignment its memory operand of `bytes` must have, less one: legacy vector operands of 16
/// bytes are aligned but for a few, those in VEX encoding unaligned but for a few (Intel SDM 1,
/// 14.9).
pub(in crate::soft) fn alignment_mask(instruction: &Instruction, bytes: u8) -> u8 {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let aligned = match instruction.encoding() {
        EncodingKind::VEX => matches!(
            mnemonic,
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        ),
        _ => {
            bytes == 16
                && !matches!(
                    mnemonic,
                    M::Movups
                        | M::Movupd
                        | M::Movdqu
                        | M::Lddqu
                        | M::Pcmpestri
                        | M::Pcmpestri64
                        | M::Pcmpestrm
                        | M::Pcmpestrm64
                        | M::Pcmpistri
                        | M::Pcmpistrm
                )
        }
    };
    if aligned { bytes - 1 } else { 0 }
}
