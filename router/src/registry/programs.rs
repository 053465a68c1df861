//! Programs of clients, each kept once.

use hashbrown::HashTable;

use super::ClientProgram;

/// Programs that are told apart; further ones are counted as one.
const PROGRAMS_MAX: usize = 256;

/// Programs by their place. One that was seen stays as long as the process.
#[derive(Debug, Default)]
pub(super) struct Programs {
    known: Vec<ClientProgram>,
    places: HashTable<u16>,
    hasher: ahash::RandomState,
}

impl Programs {
    /// The place of a program; that of `other` when there are too many.
    pub(super) fn place(&mut self, kind: &str, version: &str) -> u16 {
        let Self { known, places, hasher } = self;
        let hash = |kind: &str, version: &str| hasher.hash_one((kind, version));
        let is_same = |place: &u16| {
            let program = &known[usize::from(*place)];
            program.kind == kind && program.version == version
        };
        if let Some(place) = places.find(hash(kind, version), is_same) {
            return *place;
        }
        let (kind, version) =
            if known.len() < PROGRAMS_MAX { (kind, version) } else { ("other", "") };
        if known.len() > PROGRAMS_MAX {
            return PROGRAMS_MAX as u16;
        }
        let place = known.len() as u16;
        known.push(ClientProgram { kind: kind.to_owned(), version: version.to_owned() });
        places.insert_unique(hash(kind, version), place, |place| {
            let program = &known[usize::from(*place)];
            hash(&program.kind, &program.version)
        });
        place
    }

    /// The program at a place.
    pub(super) fn get(&self, place: u16) -> &ClientProgram {
        &self.known[usize::from(place)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_programs_are_shared_and_bounded() {
        let mut programs = Programs::default();
        let one = programs.place("app", "1");
        assert_eq!(programs.place("app", "1"), one);
        for number in 0..2 * PROGRAMS_MAX {
            programs.place("app", &number.to_string());
        }
        assert_eq!(programs.known.len(), PROGRAMS_MAX + 1);
        let new = programs.place("new", "1");
        assert_eq!(programs.get(new).kind, "other");
        assert_eq!(programs.get(one).version, "1");
    }
}
