//! The counters of the software CPU as they are told over the control socket.

use std::cmp::Reverse;

use cpu::soft::translate::Counters;

use crate::control::protocol::{Counter, CpuStats, MAX_UNTRANSLATED, Untranslated};

/// Those of all vCPUs together.
pub(super) fn sum(vcpus: &[Counters]) -> Counters {
    let mut sum = Counters::default();
    for counters in vcpus {
        sum.add(counters);
    }
    sum
}

/// Those of each vCPU, by name.
pub(super) fn of(vcpus: &[Counters]) -> CpuStats {
    let mut counters: Vec<Counter> = Vec::new();
    for vcpu in vcpus {
        for (number, (name, meaning, count)) in vcpu.named().into_iter().enumerate() {
            match counters.get_mut(number) {
                Some(counter) => counter.vcpus.push(count),
                None => counters.push(Counter {
                    name: name.to_owned(),
                    meaning: meaning.to_owned(),
                    vcpus: vec![count],
                }),
            }
        }
    }
    let all = sum(vcpus).untranslated;
    let mut untranslated: Vec<Untranslated> = all
        .into_iter()
        .map(|(form, count)| Untranslated { form, count })
        .collect();
    untranslated.sort_by_key(|it| Reverse(it.count));
    untranslated.truncate(MAX_UNTRANSLATED);
    CpuStats {
        counters,
        untranslated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::MAX_VCPUS,
        control::{
            Reply,
            protocol::{decode, encode},
        },
    };

    #[test]
    fn the_largest_machine_fits_into_a_message() {
        let names = (0..1000).map(|it| {
            (
                format!("VEX_Vgatherqps_xmm_vm64y_ymm_{it}"),
                u64::MAX / 1000,
            )
        });
        let vcpu = Counters {
            entries: u64::MAX,
            untranslated: names.collect(),
            ..Counters::default()
        };
        let mut told = of(&vec![vcpu; MAX_VCPUS as usize]);
        for counter in &mut told.counters {
            counter.vcpus.fill(u64::MAX);
        }
        let reply = Reply::CpuStats(told);
        let mut bytes = encode(&reply).expect("it is not too long");
        assert_eq!(decode(&mut bytes).expect("a message"), Some(reply));
    }

    #[test]
    fn each_vcpu_is_told_and_what_is_met_most_comes_first() {
        let with = |links: u64, names: &[(&str, u64)]| Counters {
            links,
            untranslated: names.iter().map(|it| (it.0.to_owned(), it.1)).collect(),
            ..Counters::default()
        };
        let vcpus = [
            with(3, &[("Cpuid", 1), ("Rdmsr", 1)]),
            with(4, &[("Rdmsr", 2)]),
        ];
        let told = of(&vcpus);
        let links = told.counters.iter().find(|it| it.name == "links");
        assert_eq!(links.expect("it is counted").vcpus, [3, 4]);
        let untranslated: Vec<_> = told
            .untranslated
            .iter()
            .map(|it| (&*it.form, it.count))
            .collect();
        assert_eq!(untranslated, [("Rdmsr", 3), ("Cpuid", 1)]);
    }
}
