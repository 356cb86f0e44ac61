//! Finds translations: by the page of code, then by where on it they begin. All translations of a
//! page become stale together, and jump to each other directly.

use std::{collections::HashMap, hash::BuildHasherDefault};

use super::{block::Entry, mode::Mode};
use crate::soft::block::AddressHasher;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

const OFFSET: u64 = 0xfff;

/// What a translation is found by: where its first byte lies on the host, the linear page it runs
/// at, and the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    place: Place,
    offset: u16,
}

/// A page of code as the guest runs it: where it lies on the host, the linear page, and the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    host: u64,
    page_and_mode: u64,
}

impl Key {
    pub(super) fn new(host: u64, rip: u64, mode: Mode) -> Self {
        let place = Place {
            host: host & !OFFSET,
            page_and_mode: rip & !OFFSET | u64::from(mode.number()),
        };
        let offset = (host & OFFSET) as u16;
        Self { place, offset }
    }

    /// That of another address on the page.
    pub(super) fn on_page(self, rip: u64) -> Self {
        let offset = (rip & OFFSET) as u16;
        Self { offset, ..self }
    }
}

/// A translation, of which there are many: small.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Of its first byte on the page.
    offset: u16,
    /// The ways in, from the first.
    checked: u8,
    body: u8,
    /// The first, from where code begins.
    indirect: u32,
}

/// A page of RAM.
struct Page {
    generation: u32,
    places: Vec<Place>,
}

/// All translations of one vCPU.
pub(super) struct Index {
    /// Where code begins.
    base: usize,
    /// In order of their offsets.
    places: Map<Place, Vec<Known>>,
    /// By numbers.
    pages: Map<usize, Page>,
}

impl Index {
    /// Of none, in code that begins at `base`.
    pub(super) fn new(base: usize) -> Self {
        Self {
            base,
            places: Map::default(),
            pages: Map::default(),
        }
    }

    fn entry(&self, known: &Known) -> Entry {
        let indirect = self.base + known.indirect as usize;
        Entry {
            indirect,
            checked: indirect + usize::from(known.checked),
            body: indirect + usize::from(known.body),
        }
    }

    /// A translation.
    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        let known = self.places.get(&key.place)?;
        let at = known
            .binary_search_by_key(&key.offset, |it| it.offset)
            .ok()?;
        Some(self.entry(&known[at]))
    }

    /// Adds a translation of code on the page with the number `page`, as it was at `generation`.
    pub(super) fn insert(&mut self, key: Key, entry: &Entry, page: usize, generation: u32) {
        const SHORT: &str = "the ways in are a few instructions each";
        let from = |at: usize| u8::try_from(at - entry.indirect).expect(SHORT);
        let new = Known {
            offset: key.offset,
            checked: from(entry.checked),
            body: from(entry.body),
            indirect: u32::try_from(entry.indirect - self.base).expect("code is under 4 GiB"),
        };
        let known = self.places.entry(key.place).or_insert_with(|| {
            let page = self.pages.entry(page).or_insert_with(|| Page {
                generation,
                places: Vec::new(),
            });
            page.places.push(key.place);
            Vec::new()
        });
        match known.binary_search_by_key(&key.offset, |it| it.offset) {
            Ok(at) => known[at] = new,
            Err(at) => known.insert(at, new),
        }
    }

    /// The pages of RAM that have translations: the number of each, and the generation.
    pub(super) fn pages(&self) -> impl Iterator<Item = (usize, u32)> {
        self.pages.iter().map(|(page, it)| (*page, it.generation))
    }

    /// The generation of the translations of a page.
    pub(super) fn generation(&self, page: usize) -> Option<u32> {
        self.pages.get(&page).map(|it| it.generation)
    }

    /// Drops the translations of a page, and returns them.
    pub(super) fn remove(&mut self, page: usize) -> Vec<Entry> {
        let places = self.pages.remove(&page).map_or(Vec::new(), |it| it.places);
        let mut removed = Vec::new();
        for place in places {
            let known = self.places.remove(&place).unwrap_or_default();
            removed.extend(known.iter().map(|it| self.entry(it)));
        }
        removed
    }

    /// Drops all.
    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.pages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: usize = 0x7000_0000_0000;

    fn entry(at: usize) -> Entry {
        let indirect = BASE + at;
        Entry {
            indirect,
            checked: indirect + 20,
            body: indirect + 45,
        }
    }

    #[test]
    fn a_page_is_dropped_with_all_its_translations_and_no_others() {
        let mut index = Index::new(BASE);
        let (mode, other) = (Mode::usual(false), Mode::usual(true));
        // One page of RAM at two addresses and in two modes; another one.
        let keys = [
            (Key::new(0x5010, 0x4010, mode), 7),
            (Key::new(0x5008, 0x4008, mode), 7),
            (Key::new(0x5010, 0x9010, mode), 7),
            (Key::new(0x5010, 0x4010, other), 7),
            (Key::new(0x6010, 0x4010, mode), 8),
        ];
        for (number, (key, page)) in keys.iter().enumerate() {
            index.insert(*key, &entry(number * 64), *page, 3);
        }
        for (number, (key, _)) in keys.iter().enumerate() {
            assert_eq!(index.get(key), Some(entry(number * 64)));
        }
        assert_eq!(keys[1].0.on_page(0x4010), keys[0].0);
        assert_eq!(index.get(&keys[0].0.on_page(0x4011)), None);
        assert_eq!(index.generation(7), Some(3));
        assert_eq!(index.remove(7).len(), 4);
        assert_eq!(index.get(&keys[3].0), None);
        assert_eq!(index.get(&keys[4].0), Some(entry(4 * 64)));
        assert_eq!(index.pages().collect::<Vec<_>>(), [(8, 3)]);
    }
}
