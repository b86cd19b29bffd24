//! The paths that a scan finds to differ.

use super::scan::{Change, What};
use crate::strings::Strings;

/// Paths, each with how it differs: little more than the bytes of the paths, since all of a million can be new.
#[derive(Clone, Debug, Default)]
pub struct Changes(Strings);

/// In the order of their numbers.
const WHATS: [What; 4] = [What::Added, What::Content, What::Metadata, What::Deleted];

impl Changes {
    /// Adds a path.
    pub fn push(&mut self, path: &[u8], what: What) {
        self.0.push(&[path, &[0, what as u8]].concat());
    }

    /// Adds all of `others`.
    pub fn append(&mut self, others: &Self) {
        self.0.append(&others.0);
    }

    /// Sorts by path, and then by how it differs.
    pub fn sort(&mut self) {
        // What ends a path sorts before all that can be in one. What follows counts only where two are the same.
        self.0.sort_by_key(|string| string);
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the paths, each with how it differs.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], What)> + Clone {
        self.0.iter().map(|string| {
            let (path, rest) = string.split_at(path_len(string));
            (path, WHATS[usize::from(rest[1])])
        })
    }

    /// Returns them one by one, for those who go on with a few.
    pub fn to_vec(&self) -> Vec<Change> {
        self.iter().map(|(path, what)| Change { path: path.to_vec(), what }).collect()
    }
}

/// No path has a NUL.
fn path_len(string: &[u8]) -> usize {
    string.iter().position(|&b| b == 0).expect("BUG: a path ends")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_sorted_as_changes_are() {
        let mut want: Vec<Change> = ["b", "a/b", "a", "", "a-b", "\u{1}", "ab", "a"]
            .iter()
            .zip(WHATS.iter().cycle())
            .map(|(path, what)| Change { path: path.as_bytes().to_vec(), what: *what })
            .collect();
        let (mut first, mut second) = (Changes::default(), Changes::default());
        want[..5].iter().for_each(|change| first.push(&change.path, change.what));
        want[5..].iter().for_each(|change| second.push(&change.path, change.what));
        first.append(&second);
        assert_eq!(first.to_vec(), want);
        first.sort();
        want.sort();
        assert_eq!(first.to_vec(), want);
        assert_eq!(first.len(), want.len());
    }
}
