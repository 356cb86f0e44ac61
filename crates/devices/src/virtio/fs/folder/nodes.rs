//! The files a guest knows: which they are, and by which way they are reached again.
//!
//! A guest may know more files than the process may have open. So a node is a file's identity, the
//! directory and the name it was last seen under, and, while there is room, an open descriptor (a
//! place, `O_PATH`). One that had to be closed is opened again by its name and must prove to be the
//! same file; else it is stale, and the guest's kernel looks the name up anew. A file whose last name
//! goes stays open. Numbers of nodes are never used twice.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CStr, CString},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::{fs::Statx, io::Errno};

use super::system::{open_path, stat, stat_at};
use crate::virtio::fs::fuse::ROOT;

/// Most directories that are opened again on the way to a file.
const MAX_CLIMB: usize = 1024;

/// What tells files of one host apart. The time a file was made tells one that has gone from one that
/// got its number; where a file system does not know it, its type does as far as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    made: (i64, u32),
    kind: u16,
}

/// The bits of a mode that are the file's type (`S_IFMT`).
const KIND: u16 = 0o170_000;

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            made: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            kind: stat.stx_mode & KIND,
        }
    }
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    /// How often the guest was told of it and has not forgotten yet.
    lookups: u64,
    /// Where it was last seen: a directory's node, and a name there.
    place: Option<(u64, CString)>,
    file: Option<Arc<OwnedFd>>,
    /// Used since it was last thought of being closed.
    used: bool,
    /// It has no name to be opened again by, and stays open.
    kept: bool,
    /// It is among those that can be closed.
    queued: bool,
}

/// The files a guest knows.
#[derive(Debug)]
pub(super) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    /// Open ones that can be closed, those that had their turn last; some may be gone or kept.
    closable: VecDeque<u64>,
    /// Open ones, the root not counted.
    open: usize,
    /// Of them, those that are kept.
    kept: usize,
    most: usize,
    most_open: usize,
}

impl Nodes {
    /// Only the root is known. `most` nodes can be known, `most_open` of them be open.
    pub(super) fn new(root: OwnedFd, most: usize, most_open: usize) -> Result<Self, Errno> {
        let identity = Identity::from(&stat(&root)?);
        let node = Node {
            identity,
            lookups: 1,
            place: None,
            file: Some(Arc::new(root)),
            used: true,
            kept: true,
            queued: false,
        };
        Ok(Self {
            by_number: HashMap::from([(ROOT, node)]),
            by_identity: HashMap::from([(identity, ROOT)]),
            next: ROOT + 1,
            closable: VecDeque::new(),
            open: 0,
            kept: 0,
            most,
            most_open: most_open.max(2),
        })
    }

    /// Forgets all but the root.
    pub(super) fn clear(&mut self) {
        self.by_number.retain(|&number, _| number == ROOT);
        self.by_identity.retain(|_, number| *number == ROOT);
        self.closable.clear();
        (self.open, self.kept) = (0, 0);
    }

    /// The next number.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Uses no number below.
    pub(super) fn begin_at(&mut self, next: u64) {
        self.next = next.max(ROOT + 1);
    }

    /// How many are known, and how many descriptors they hold.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.by_number.len(), self.open)
    }

    fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.by_number.get(&number).ok_or(Errno::STALE)
    }

    /// The file of a node.
    ///
    /// # Errors
    /// `ESTALE` when it is not known, or not where it was last seen.
    pub(super) fn file(&mut self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        let mut closed = Vec::new();
        let mut at = number;
        let mut file = loop {
            let node = self.by_number.get_mut(&at).ok_or(Errno::STALE)?;
            if let Some(file) = &node.file {
                node.used = true;
                break Arc::clone(file);
            }
            let (directory, _) = node.place.as_ref().ok_or(Errno::STALE)?;
            // What the host moves may make a ring of what was last seen.
            if closed.len() == MAX_CLIMB {
                return Err(Errno::STALE);
            }
            closed.push(at);
            at = *directory;
        };
        for number in closed.into_iter().rev() {
            file = self.open_again(&file, number)?;
        }
        Ok(file)
    }

    fn open_again(&mut self, directory: &OwnedFd, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.node(number)?;
        let (_, name) = node.place.as_ref().ok_or(Errno::STALE)?;
        let opened = open_path(directory, name).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => Errno::STALE,
            error => error,
        })?;
        if Identity::from(&stat(&opened)?) != node.identity {
            return Err(Errno::STALE);
        }
        let opened = Arc::new(opened);
        self.opened(number, &opened);
        Ok(opened)
    }

    /// A node has an open file now; others may have to be closed for it.
    fn opened(&mut self, number: u64, file: &Arc<OwnedFd>) {
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        node.file = Some(Arc::clone(file));
        node.used = true;
        self.open += 1;
        self.queue(number);
        while self.open > self.most_open && self.close_one() {}
    }

    /// A node's file can be closed. Each is in the queue once, and those that are gone are thrown
    /// out before they are many.
    fn queue(&mut self, number: u64) {
        match self.by_number.get_mut(&number) {
            Some(node) if !node.queued => node.queued = true,
            _ => return,
        }
        if self.closable.len() > 2 * self.most_open {
            self.closable.retain(|it| self.by_number.contains_key(it));
        }
        self.closable.push_back(number);
    }

    /// Closes one that was not used lately; `false` when none can be.
    fn close_one(&mut self) -> bool {
        while let Some(number) = self.closable.pop_front() {
            let Some(node) = self.by_number.get_mut(&number) else {
                continue;
            };
            node.queued = false;
            if node.kept || node.file.is_none() {
                continue;
            }
            // Its turn ends here, or next time.
            if std::mem::take(&mut node.used) {
                self.queue(number);
                continue;
            }
            node.file = None;
            self.open -= 1;
            return true;
        }
        false
    }

    /// The guest is told of a file: what it is, and where it was found.
    ///
    /// # Errors
    /// `ENFILE` when it knows too many.
    pub(super) fn found(
        &mut self,
        directory: u64,
        name: &CStr,
        stat: &Statx,
    ) -> Result<u64, Errno> {
        let identity = Identity::from(stat);
        if let Some(&number) = self.by_identity.get(&identity)
            && let Some(node) = self.by_number.get_mut(&number)
        {
            node.lookups = node.lookups.saturating_add(1);
            if number != ROOT {
                self.seen(number, directory, name);
            }
            return Ok(number);
        }
        if self.by_number.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let number = self.next;
        self.next += 1;
        let node = Node {
            identity,
            lookups: 1,
            place: Some((directory, name.to_owned())),
            file: None,
            used: false,
            kept: false,
            queued: false,
        };
        self.by_number.insert(number, node);
        self.by_identity.insert(identity, number);
        Ok(number)
    }

    /// A known file has a name.
    fn seen(&mut self, number: u64, directory: u64, name: &CStr) {
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        let known = node.place.as_ref();
        if !known.is_some_and(|it| it.0 == directory && *it.1 == *name) {
            node.place = Some((directory, name.to_owned()));
        }
        if std::mem::take(&mut node.kept) {
            self.kept -= 1;
            self.queue(number);
        }
    }

    /// The guest forgets `lookups` times what it was told.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 || number == ROOT {
            return;
        }
        if let Some(node) = self.by_number.remove(&number) {
            self.by_identity.remove(&node.identity);
            self.open -= usize::from(node.file.is_some());
            self.kept -= usize::from(node.kept);
        }
    }

    /// The node of what has this name now, if the guest knows it.
    pub(super) fn at(&mut self, directory: &OwnedFd, name: &CStr) -> Option<u64> {
        let identity = Identity::from(&stat_at(directory, name).ok()?);
        let number = self.by_identity.get(&identity).copied();
        number.filter(|&number| number != ROOT)
    }

    /// A name is about to go: its file is opened while it can be found. As long as there is room:
    /// what finds none is stale afterwards.
    pub(super) fn losing_name(&mut self, number: Option<u64>) {
        if let Some(number) = number
            && self.kept < self.most_open / 2
        {
            // One that cannot be opened is stale already.
            let _ = self.file(number);
        }
    }

    /// The name has gone.
    pub(super) fn lost_name(&mut self, number: Option<u64>) {
        let Some(node) = number.and_then(|it| self.by_number.get_mut(&it)) else {
            return;
        };
        node.place = None;
        if node.file.is_some() && !node.kept && self.kept < self.most_open / 2 {
            node.kept = true;
            self.kept += 1;
        }
    }

    /// The file has another name.
    pub(super) fn renamed(&mut self, number: Option<u64>, directory: u64, name: &CStr) {
        if let Some(number) = number {
            self.seen(number, directory, name);
        }
    }
}
