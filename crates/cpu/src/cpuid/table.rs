//! A finished table, for one vCPU.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What `cpuid` leaves in the four registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaf {
    /// `eax`.
    pub eax: u32,
    /// `ebx`.
    pub ebx: u32,
    /// `ecx`.
    pub ecx: u32,
    /// `edx`.
    pub edx: u32,
}

impl Leaf {
    pub(super) const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

/// An entry: which leaf, for which subleaf if that matters, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    leaf: u32,
    subleaf: Option<u32>,
    says: Leaf,
}

/// What `cpuid` answers on one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// A leaf that does not look at `ecx`.
    pub(super) fn add(&mut self, leaf: u32, says: Leaf) {
        self.entries.push(Entry {
            leaf,
            subleaf: None,
            says,
        });
    }

    /// One subleaf of a leaf that does.
    pub(super) fn add_subleaf(&mut self, leaf: u32, subleaf: u32, says: Leaf) {
        self.entries.push(Entry {
            leaf,
            subleaf: Some(subleaf),
            says,
        });
    }

    /// What it says with `leaf` in `eax` and `subleaf` in `ecx`. Zero where there is nothing, as on
    /// processors of AMD; the levels of topology leaf 0xb are numbered on without end.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> Leaf {
        let mut entries = self.entries.iter();
        let found = entries
            .find(|it| it.leaf == leaf && it.subleaf.is_none_or(|sub| sub == subleaf))
            .map(|it| it.says);
        match (found, leaf) {
            (Some(says), _) => says,
            (None, 0xb) => Leaf {
                ecx: subleaf & 0xff,
                edx: self.lookup(0xb, 0).edx,
                ..Leaf::default()
            },
            _ => Leaf::default(),
        }
    }

    /// As `KVM_SET_CPUID2` takes it.
    #[must_use]
    pub fn to_kvm(&self) -> CpuId {
        let entry = |it: &Entry| kvm_cpuid_entry2 {
            function: it.leaf,
            index: it.subleaf.unwrap_or(0),
            flags: it.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: it.says.eax,
            ebx: it.says.ebx,
            ecx: it.says.ecx,
            edx: it.says.edx,
            ..Default::default()
        };
        let entries: Vec<_> = self.entries.iter().map(entry).collect();
        CpuId::from_entries(&entries).expect("far fewer entries than KVM takes")
    }
}
