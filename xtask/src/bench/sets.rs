//! The trees that are stored: each in two versions, between which the same files on the disk go back and forth.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Result, succeed};
use crate::ensure;
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
    /// A regular file of it, for restoring just that.
    pub one_file: &'static str,
    /// Whether it is thousands of files.
    pub has_many_files: bool,
    build: fn(&Path, &Sizes) -> Result,
    change: fn(&Path, &Path) -> Result,
}

/// Returns all trees.
pub fn all(sizes: &Sizes) -> Vec<Set> {
    vec![
        Set {
            name: "Debian root".into(),
            one_file: "etc/debian_version",
            has_many_files: true,
            build: |dir, _| fixtures::debian_root(dir),
            change: upgrade,
        },
        Set {
            name: format!("media, {} MiB that nothing compresses", sizes.media >> 20),
            one_file: "note.txt",
            has_many_files: false,
            build: |dir, sizes| {
                fs::write(dir.join("note.txt"), [b'x'; 1024])?;
                fixtures::media(dir, sizes.media)
            },
            change: insert_a_mebibyte,
        },
        Set {
            name: format!("disk image, {} MiB with a Debian root in it", sizes.image >> 20),
            one_file: "disk.json",
            has_many_files: false,
            build: image,
            change: change_inside,
        },
        Set {
            name: format!("{} small files", sizes.small_files),
            one_file: "group-00/dir-000/file-000000.conf",
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
    first: PathBuf,
    second: PathBuf,
    added: Vec<PathBuf>,
}

impl Source {
    /// Builds the first version of `set` below `scratch`, and keeps aside what the second changes.
    pub fn build(set: &Set, sizes: &Sizes, scratch: &Path) -> Result<Source> {
        let at = |name: &str| scratch.join(name);
        let mut source = Source { tree: at("source"), first: at("first"), second: at("second"), added: Vec::new() };
        for dir in [&source.tree, &source.first, &source.second] {
            fixtures::remove(dir)?;
            fs::create_dir_all(dir)?;
        }
        (set.build)(&source.tree, sizes)?;
        ensure!(source.tree.join(set.one_file).is_file(), "'{}' is not in the tree", set.one_file);
        (set.change)(&source.tree, &source.second)?;
        for path in files(&source.second)? {
            if source.tree.join(&path).exists() {
                let mut copy = Command::new("cp");
                copy.args(["-a", "--sparse=always", "--parents", "--"]).arg(&path).arg(&source.first).current_dir(&source.tree);
                succeed(&mut copy)?;
            } else {
                source.added.push(path);
            }
        }
        Ok(source)
    }

    /// Makes the tree what it was first.
    pub fn to_first(&self) -> Result {
        for path in &self.added {
            let path = self.tree.join(path);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        overlay(&self.first, &self.tree)
    }

    /// Changes the tree.
    pub fn to_second(&self) -> Result {
        overlay(&self.second, &self.tree)
    }
}

/// Copies the files of one tree over those of another, which stay the same inodes.
fn overlay(from: &Path, to: &Path) -> Result {
    succeed(Command::new("cp").args(["-a", "--sparse=always", "-T", "--"]).arg(from).arg(to)).map(drop)
}

/// Lists the regular files below `dir`, sorted, relative to it.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = succeed(Command::new("find").arg(".").args(["-type", "f", "-printf", "%P\\n"]).current_dir(dir))?;
    let mut files: Vec<PathBuf> = listed.text().lines().map(PathBuf::from).collect();
    files.sort();
    Ok(files)
}

/// Returns where the changed version of `path` is to be written.
fn place(changed: &Path, path: &Path) -> Result<PathBuf> {
    let place = changed.join(path);
    fs::create_dir_all(place.parent().ok_or("a file has no name")?)?;
    Ok(place)
}

/// One file in twelve is a new version, a hundred are new: like an upgrade of some packages and a few edits.
fn upgrade(tree: &Path, changed: &Path) -> Result {
    let is_in_a_package = |path: &PathBuf| ["usr/", "etc/", "var/lib/dpkg/"].iter().any(|dir| path.starts_with(dir));
    let all: Vec<PathBuf> = files(tree)?.into_iter().filter(is_in_a_package).collect();
    for (at, path) in all.iter().enumerate().step_by(12) {
        let mut content = fs::read(tree.join(path)).context(|| format!("cannot read '{}'", path.display()))?;
        let third = content.len() / 3;
        let word = Seeded::new(at as u64).text(16);
        if let Some(four) = content.get_mut(2 * third..2 * third + 4) {
            four.copy_from_slice(&word[..4]);
        }
        content.splice(third..third, word);
        fs::write(place(changed, path)?, content)?;
    }
    for at in 0..100 {
        fs::write(place(changed, Path::new(&format!("usr/share/bench/new-{at:03}.conf")))?, Seeded::new(at).text(3000))?;
    }
    Ok(())
}

/// One file gets 1 MiB more in its middle.
fn insert_a_mebibyte(tree: &Path, changed: &Path) -> Result {
    let name = Path::new("clip-000.bin");
    let (mut from, mut to) = (File::open(tree.join(name))?, File::create(place(changed, name)?)?);
    let half = from.metadata()?.len() / 2;
    std::io::copy(&mut std::io::Read::take(&mut from, half), &mut to)?;
    std::io::Write::write_all(&mut to, &Seeded::new(4).bytes(1 << 20))?;
    std::io::copy(&mut from, &mut to)?;
    Ok(())
}

/// One file in a hundred has other content of the same kind.
fn rewrite_one_percent(tree: &Path, changed: &Path) -> Result {
    for (at, path) in files(tree)?.iter().enumerate().step_by(100) {
        let mut content = fs::read(tree.join(path))?;
        content.extend(Seeded::new(at as u64).text(100));
        fs::write(place(changed, path)?, content)?;
    }
    Ok(())
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
fn change_inside(tree: &Path, changed: &Path) -> Result {
    let (disk, at) = (place(changed, Path::new("disk.img"))?, changed.with_extension("mounted"));
    succeed(Command::new("cp").arg("--sparse=always").arg(tree.join("disk.img")).arg(&disk))?;
    fs::create_dir_all(&at)?;
    succeed(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&at))?;
    let edited = edit_mounted(&at);
    succeed(Command::new("umount").arg(&at))?;
    fs::remove_dir(&at)?;
    edited
}

fn edit_mounted(root: &Path) -> Result {
    let all = files(&root.join("usr/lib"))?;
    for (at, path) in all.iter().enumerate().step_by(all.len() / 20 + 1) {
        let mut file = File::options().write(true).open(root.join("usr/lib").join(path))?;
        file.write_all_at(&Seeded::new(at as u64).bytes(512), 0)?;
        file.seek(SeekFrom::End(0))?;
        std::io::Write::write_all(&mut file, &Seeded::new(at as u64).text(2000))?;
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
        for set in all(&sizes).iter().filter(|set| set.one_file == "note.txt" || set.one_file.starts_with("group")) {
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
