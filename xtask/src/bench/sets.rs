//! The trees that are stored: each in two versions, between which the same files on the disk go back and forth.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Result, succeed};
use crate::fixtures::{self, Seeded};

/// How large the trees are.
pub struct Sizes {
    /// Bytes of media.
    pub media: u64,
    /// Number of small files.
    pub small_files: usize,
    /// Bytes of the disk image, holes included.
    pub image: u64,
}

/// A tree to store.
pub struct Set {
    /// Its name in the page.
    pub name: String,
    /// Whether it is thousands of files.
    pub has_many_files: bool,
    build: fn(&Path, &Sizes) -> Result,
    change: Change,
}

/// Writes to another directory what the second version of a tree has anew, and returns what it has no more.
type Change = fn(&Path, &Path) -> Result<Vec<PathBuf>>;

/// Returns all trees.
pub fn all(sizes: &Sizes) -> Vec<Set> {
    vec![
        Set {
            name: "Debian root".into(),
            has_many_files: true,
            build: |dir, _| fixtures::debian_as_released(dir),
            change: upgrade,
        },
        Set {
            name: format!("media, {} MiB that nothing compresses", sizes.media >> 20),
            has_many_files: false,
            build: |dir, sizes| {
                fs::write(dir.join("note.txt"), [b'x'; 1024])?;
                fixtures::media(dir, sizes.media)
            },
            change: insert_a_mebibyte,
        },
        Set {
            name: format!("disk image, {} MiB with a Debian root in it", sizes.image >> 20),
            has_many_files: false,
            build: image,
            change: change_inside,
        },
        Set {
            name: format!("{} small files", sizes.small_files),
            has_many_files: true,
            build: |dir, sizes| fixtures::many_files(dir, sizes.small_files),
            change: rewrite_one_percent,
        },
    ]
}

/// A tree on the disk.
pub struct Source {
    /// Where it is.
    pub tree: PathBuf,
    /// A regular file of it of about 1 KiB, for restoring just that.
    pub one_file: PathBuf,
    first: PathBuf,
    second: PathBuf,
    added: Vec<PathBuf>,
    removed: Vec<PathBuf>,
}

impl Source {
    /// Builds the first version of `set` below `scratch`, and keeps aside what the second changes.
    pub fn build(set: &Set, sizes: &Sizes, scratch: &Path) -> Result<Source> {
        let at = |name: &str| scratch.join(name);
        let [tree, first, second] = ["source", "first", "second"].map(at);
        for dir in [&tree, &first, &second] {
            fixtures::remove(dir)?;
            fs::create_dir_all(dir)?;
        }
        (set.build)(&tree, sizes)?;
        let one_file = about_a_kibibyte(&tree)?;
        let removed = (set.change)(&tree, &second)?;
        let is_there = |path: &PathBuf| tree.join(path).symlink_metadata().is_ok();
        let (mut replaced, added): (Vec<PathBuf>, Vec<PathBuf>) = leaves(&second)?.into_iter().partition(is_there);
        replaced.extend_from_slice(&removed);
        // All at once, so that hard links stay links.
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=always", "--parents", "--"]).args(&replaced).arg(&first).current_dir(&tree);
        succeed(&mut copy)?;
        Ok(Source { tree, one_file, first, second, added, removed })
    }

    /// Returns where the second version lies, as far as it is not the first.
    pub fn changed(&self) -> &Path {
        &self.second
    }

    /// Makes the tree what it was first.
    pub fn to_first(&self) -> Result {
        self.remove(&self.added)?;
        overlay(&self.first, &self.tree)
    }

    /// Changes the tree.
    pub fn to_second(&self) -> Result {
        self.remove(&self.removed)?;
        overlay(&self.second, &self.tree)
    }

    fn remove(&self, paths: &[PathBuf]) -> Result {
        let mut remove = Command::new("rm");
        succeed(remove.args(["-f", "--"]).args(paths).current_dir(&self.tree)).map(drop)
    }
}

/// Copies the files of one tree over those of another, which stay the same inodes.
fn overlay(from: &Path, to: &Path) -> Result {
    succeed(Command::new("cp").args(["-a", "--sparse=always", "-T", "--"]).arg(from).arg(to)).map(drop)
}

/// Lists the regular files below `dir`, sorted, relative to it.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    found(dir, &["-type", "f"])
}

/// The same with all that is no directory.
fn leaves(dir: &Path) -> Result<Vec<PathBuf>> {
    found(dir, &["-not", "-type", "d"])
}

fn found(dir: &Path, tests: &[&str]) -> Result<Vec<PathBuf>> {
    let listed = succeed(Command::new("find").arg(".").args(tests).args(["-printf", "%P\\n"]).current_dir(dir))?;
    let mut found: Vec<PathBuf> = listed.text().lines().map(PathBuf::from).collect();
    found.sort();
    Ok(found)
}

/// Returns the file whose length comes nearest to 1 KiB, of those with a name that no tool takes for anything else.
fn about_a_kibibyte(tree: &Path) -> Result<PathBuf> {
    let is_plain = |path: &PathBuf| path.to_string_lossy().chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let distance = |path: &PathBuf| tree.join(path).metadata().map_or(u64::MAX, |meta| meta.len().abs_diff(1024));
    let nearest = files(tree)?.into_iter().filter(is_plain).min_by_key(distance);
    nearest.ok_or_else(|| "the tree has no file".into())
}

/// Returns where the changed version of `path` is to be written.
fn place(changed: &Path, path: &Path) -> Result<PathBuf> {
    let place = changed.join(path);
    fs::create_dir_all(place.parent().ok_or("a file has no name")?)?;
    Ok(place)
}

/// The packages are upgraded, and of the files in `/etc`, one in twenty gets a line more.
fn upgrade(tree: &Path, changed: &Path) -> Result<Vec<PathBuf>> {
    let removed = fixtures::debian_upgrade(changed)?;
    // One of them is immutable.
    for path in files(&tree.join("etc"))?.iter().filter(|path| !path.ends_with("issue")).step_by(20) {
        let path = Path::new("etc").join(path);
        if !changed.join(&path).exists() {
            succeed(Command::new("cp").args(["-a", "--parents", "--"]).arg(&path).arg(changed).current_dir(tree))?;
        }
        writeln!(File::options().append(true).open(changed.join(&path))?, "# edited")?;
    }
    Ok(removed)
}

/// One file gets 1 MiB more in its middle.
fn insert_a_mebibyte(tree: &Path, changed: &Path) -> Result<Vec<PathBuf>> {
    let name = Path::new("clip-000.bin");
    let (mut from, mut to) = (File::open(tree.join(name))?, File::create(place(changed, name)?)?);
    let half = from.metadata()?.len() / 2;
    std::io::copy(&mut (&from).take(half), &mut to)?;
    to.write_all(&Seeded::new(4).bytes(1 << 20))?;
    std::io::copy(&mut from, &mut to)?;
    Ok(Vec::new())
}

/// One file in a hundred has other content of the same kind.
fn rewrite_one_percent(tree: &Path, changed: &Path) -> Result<Vec<PathBuf>> {
    for (at, path) in files(tree)?.iter().enumerate().step_by(100) {
        let mut content = fs::read(tree.join(path))?;
        content.extend(Seeded::new(at as u64).text(100));
        fs::write(place(changed, path)?, content)?;
    }
    Ok(Vec::new())
}

/// A disk with ext4 on it, and a Debian root in that.
fn image(dir: &Path, sizes: &Sizes) -> Result {
    let root = dir.with_extension("root");
    fixtures::remove(&root)?;
    fs::create_dir_all(&root)?;
    fixtures::debian_root(&root)?;
    let disk = dir.join("disk.img");
    File::create(&disk)?.set_len(sizes.image)?;
    succeed(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&root).arg(&disk))?;
    fs::write(dir.join("disk.json"), format!("{{\"size\": {}}}{}\n", sizes.image, " ".repeat(1000)))?;
    fixtures::remove(&root)
}

/// Some sixty files are changed in the filesystem of the disk: overwritten, longer, new.
fn change_inside(tree: &Path, changed: &Path) -> Result<Vec<PathBuf>> {
    let (disk, at) = (place(changed, Path::new("disk.img"))?, changed.with_extension("mounted"));
    succeed(Command::new("cp").arg("--sparse=always").arg(tree.join("disk.img")).arg(&disk))?;
    fs::create_dir_all(&at)?;
    succeed(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&at))?;
    let edited = edit_mounted(&at);
    succeed(Command::new("umount").arg(&at))?;
    fs::remove_dir(&at)?;
    edited.map(|()| Vec::new())
}

fn edit_mounted(root: &Path) -> Result {
    let all = files(&root.join("usr/lib"))?;
    for (at, path) in all.iter().enumerate().step_by(all.len() / 20 + 1) {
        let mut file = File::options().write(true).open(root.join("usr/lib").join(path))?;
        file.write_all_at(&Seeded::new(at as u64).bytes(512), 0)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(&Seeded::new(at as u64).text(2000))?;
    }
    fs::create_dir_all(root.join("var/log/bench"))?;
    for at in 0..20 {
        fs::write(root.join(format!("var/log/bench/{at}.log")), Seeded::new(at).text(20_000))?;
        fs::write(root.join(format!("etc/bench-{at}.conf")), Seeded::new(at).text(800))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::target_dir;

    #[test]
    fn a_tree_goes_to_its_second_version_and_back() {
        let scratch = target_dir().join("xtask-tests/bench-set");
        let sizes = Sizes { media: 3 << 20, small_files: 150, image: 0 };
        for set in all(&sizes).iter().filter(|set| set.name.contains("media") || set.name.contains("small files")) {
            fixtures::remove(&scratch).unwrap();
            fs::create_dir_all(&scratch).unwrap();
            let source = Source::build(set, &sizes, &scratch).unwrap();
            let content = || -> Vec<Vec<u8>> {
                files(&source.tree).unwrap().iter().map(|path| fs::read(source.tree.join(path)).unwrap()).collect()
            };
            let first = content();
            source.to_second().unwrap();
            assert_ne!(content(), first, "{}", set.name);
            source.to_first().unwrap();
            assert_eq!(content(), first, "{}", set.name);
        }
        fixtures::remove(&scratch).unwrap();
    }
}
