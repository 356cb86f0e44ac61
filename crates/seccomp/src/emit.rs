//! Writing classic BPF from its end to its start.
//!
//! Jumps of classic BPF only go forward, and conditional ones at most 255 instructions. Emitted
//! backwards, every target is known when a jump is written: if it is near, the jump goes there; if
//! not, a copy (of a return) or a long jump is put right behind the jump first.

use crate::action::Action;

/// One instruction of classic BPF: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the test holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Constant.
    pub k: u32,
}

pub(crate) const LOAD: u16 = 0x20;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_GREATER: u16 = 0x25;
pub(crate) const JUMP_GREATER_EQUAL: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;

/// A place in the program, counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program under construction, last instruction first.
#[derive(Default)]
pub(crate) struct Emitter {
    code: Vec<Instruction>,
    /// The nearest return of each action so far.
    returns: Vec<(Action, Label)>,
}

impl Emitter {
    pub(crate) fn with_capacity(n: usize) -> Emitter {
        Emitter {
            code: Vec::with_capacity(n),
            returns: Vec::with_capacity(8),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.code.len()
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.code.push(Instruction { code, jt, jf, k });
        Label(self.code.len() - 1)
    }

    /// How many instructions lie between the next one emitted and `target`.
    fn distance(&self, target: Label) -> usize {
        self.code.len() - target.0 - 1
    }

    /// A place that returns `action`, an old one if it is near enough for what follows shortly.
    pub(crate) fn ret(&mut self, action: Action) -> Label {
        let known = self.returns.iter().position(|(a, _)| *a == action);
        if let Some(i) = known
            && self.distance(self.returns[i].1) < 200
        {
            return self.returns[i].1;
        }
        let label = self.push(RETURN, 0, 0, action.value());
        match known {
            Some(i) => self.returns[i].1 = label,
            None => self.returns.push((action, label)),
        }
        label
    }

    /// Loads a word of `struct seccomp_data`, then goes on at `next`.
    pub(crate) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.goto(next);
        self.push(LOAD, 0, 0, offset)
    }

    /// Masks the loaded word, then goes on at `next`.
    pub(crate) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.goto(next);
        self.push(AND, 0, 0, mask)
    }

    /// Makes sure that what comes before runs into `next`.
    fn goto(&mut self, next: Label) {
        let distance = self.distance(next);
        if distance > 0 {
            self.push(JUMP, 0, 0, distance as u32);
        }
    }

    /// Tests the loaded word against `k` by `operation` and goes to one of two places.
    pub(crate) fn branch(&mut self, operation: u16, k: u32, yes: Label, no: Label) -> Label {
        // A stub for one target moves the other one step further away, hence 254.
        let no = if self.distance(no) > 254 {
            self.stub(no)
        } else {
            no
        };
        let yes = if self.distance(yes) > 255 {
            self.stub(yes)
        } else {
            yes
        };
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(operation, jt, jf, k)
    }

    /// A near stand-in for a far place.
    fn stub(&mut self, target: Label) -> Label {
        let there = self.code[target.0];
        match there.code {
            RETURN => self.push(RETURN, 0, 0, there.k),
            _ => {
                let distance = self.distance(target) as u32;
                self.push(JUMP, 0, 0, distance)
            }
        }
    }

    /// The program that starts at `entry`.
    pub(crate) fn finish(mut self, entry: Label) -> Vec<Instruction> {
        self.goto(entry);
        self.code.reverse();
        self.code
    }
}
