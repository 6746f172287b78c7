//! Inode numbers of the places that the kernel knows.

use std::collections::HashMap;

use crate::place::Place;

/// Fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

struct Inode {
    place: Place,
    /// What the kernel will give back by `forget`.
    lookups: u64,
}

pub struct Inodes {
    by_number: HashMap<u64, Inode>,
    by_place: HashMap<Place, u64>,
    next: u64,
}

impl Inodes {
    pub fn new() -> Self {
        let root = Inode { place: Place::root(), lookups: 1 };
        Self { by_number: HashMap::from([(ROOT, root)]), by_place: HashMap::new(), next: ROOT + 1 }
    }

    pub fn place(&self, number: u64) -> Option<Place> {
        self.by_number.get(&number).map(|inode| inode.place.clone())
    }

    /// One more lookup of `place`.
    ///
    /// A command file is a new inode for each lookup, so for each open: the kernel holds
    /// an inode's lock through a write, and a command that takes long must not keep
    /// others from the same file.
    pub fn look_up(&mut self, place: Place) -> u64 {
        let is_shared = place.entry.write.is_none();
        if is_shared && let Some(&number) = self.by_place.get(&place) {
            if let Some(inode) = self.by_number.get_mut(&number) {
                inode.lookups += 1;
            }
            return number;
        }
        let number = self.next;
        self.next += 1;
        if is_shared {
            self.by_place.insert(place.clone(), number);
        }
        self.by_number.insert(number, Inode { place, lookups: 1 });
        number
    }

    pub fn forget(&mut self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        let Some(inode) = self.by_number.get_mut(&number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0
            && let Some(inode) = self.by_number.remove(&number)
            && self.by_place.get(&inode.place) == Some(&number)
        {
            self.by_place.remove(&inode.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Place {
        path.split('/').try_fold(Place::root(), |place, name| place.child(name)).unwrap()
    }

    #[test]
    fn a_forgotten_inode_leaves_nothing_and_its_number_does_not_come_back() {
        let mut inodes = Inodes::new();
        let first = inodes.look_up(at("node/id"));
        assert_eq!(inodes.look_up(at("node/id")), first);
        inodes.forget(first, 1);
        assert_eq!(inodes.place(first), Some(at("node/id")));
        inodes.forget(first, 1);
        assert_eq!(inodes.place(first), None);
        assert_ne!(inodes.look_up(at("node/id")), first);
    }

    #[test]
    fn command_files_do_not_share_inodes() {
        let mut inodes = Inodes::new();
        let one = inodes.look_up(at("ccn/mig/emigrate-ppm-p"));
        let two = inodes.look_up(at("ccn/mig/emigrate-ppm-p"));
        assert_ne!(one, two);
        inodes.forget(one, 1);
        assert!(inodes.place(two).is_some());
    }
}
