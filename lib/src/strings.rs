//! Many short byte strings, close together in memory.

/// Byte strings that stay where they are put: each takes its bytes and eight more, and what is added moves none of those that are there.
///
/// Nothing says where a string ends: whoever reads it must see that from the string itself.
#[derive(Clone, Debug, Default)]
pub struct Strings {
    blocks: Vec<Vec<u8>>,
    places: Vec<Place>,
}

/// Where a string starts.
#[derive(Clone, Copy, Debug)]
struct Place {
    block: u32,
    at: u32,
}

/// So many bytes a block has, but for a first one that needs fewer, and for one with a string that is longer.
const BLOCK: usize = 1 << 20;

impl Strings {
    /// Adds a string behind the others.
    pub fn push(&mut self, string: &[u8]) {
        let place = self.take(string);
        self.places.push(place);
    }

    /// Adds all of `others` behind these.
    pub fn append(&mut self, others: &Self) {
        let starts: Vec<Place> = others.blocks.iter().map(|block| self.take(block)).collect();
        self.places.extend(others.places.iter().map(|place| {
            let start = starts[place.block as usize];
            Place { at: start.at + place.at, ..start }
        }));
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns the strings in their order, each with whatever follows it.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.places.iter().map(|place| at(&self.blocks, *place))
    }

    /// Leaves out the strings for which `is_kept` does not hold; that gives no memory back.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&[u8]) -> bool) {
        self.places.retain(|place| is_kept(at(&self.blocks, *place)));
    }

    /// Sorts by what `key` finds in a string.
    pub fn sort_by_key<K: Ord + ?Sized>(&mut self, key: impl Fn(&[u8]) -> &K) {
        self.places.sort_by(|a, b| key(at(&self.blocks, *a)).cmp(key(at(&self.blocks, *b))));
    }

    /// Copies bytes into a block that has room for all of them.
    fn take(&mut self, bytes: &[u8]) -> Place {
        match self.blocks.last() {
            None => self.blocks.push(Vec::new()),
            Some(last) if last.len() + bytes.len() > BLOCK => self.blocks.push(Vec::with_capacity(BLOCK.max(bytes.len()))),
            Some(_) => (),
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let small = |n: usize| u32::try_from(n).expect("BUG: no machine holds so many strings");
        let place = Place { block: small(number), at: small(block.len()) };
        block.extend_from_slice(bytes);
        place
    }
}

fn at(blocks: &[Vec<u8>], place: Place) -> &[u8] {
    &blocks[place.block as usize][place.at as usize..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a string up to its NUL.
    fn text(string: &[u8]) -> &[u8] {
        &string[..string.iter().position(|&b| b == 0).unwrap()]
    }

    #[test]
    fn strings_are_found_again_whatever_block_they_came_into() {
        let want: Vec<Vec<u8>> = [3, BLOCK / 2, 5, BLOCK / 2, BLOCK * 2, 1, 7]
            .iter()
            .enumerate()
            .map(|(n, len)| [vec![b'z' - n as u8; *len], vec![0]].concat())
            .collect();
        let (mut all, mut half) = (Strings::default(), Strings::default());
        want[..3].iter().for_each(|string| all.push(string));
        want[3..].iter().for_each(|string| half.push(string));
        all.append(&half);
        all.append(&Strings::default());
        assert_eq!(all.len(), want.len());
        assert!(all.iter().map(text).eq(want.iter().map(|string| text(string))));
        all.sort_by_key(text);
        assert!(all.iter().map(text).eq(want.iter().rev().map(|string| text(string))));
        all.retain(|string| text(string).len() < 6);
        assert_eq!(all.iter().map(text).collect::<Vec<_>>(), [&b"u"[..], b"xxxxx", b"zzz"]);
    }
}
