//! Restoring onto a tree that is there touches what differs, and nothing that is not ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::{Context, Result, run, succeed};
use crate::compare::{Difference, Options, What, compare, must_be_none};
use crate::{ensure, fixtures};

use super::{Place, World, copy, fingerprint, must_name, touched};

/// What is done to the stored tree.
const DAMAGE: &str = "
    for file in group-00/dir-001/file-000001.*; do echo changed >$file; done
    chmod 0600 group-00/dir-002/file-000002.*
    rm group-00/dir-003/file-000003.*
    rm -r group-00/dir-004
    rm clip-000.bin; ln -s nowhere clip-000.bin
    printf changed | dd of=disk.img bs=1 seek=3000000 conv=notrunc status=none
    touch -d 2001-01-01 group-00/dir-005/file-000005.*
    setfattr -n user.planted -v x group-00/dir-006/file-000006.*
    echo mine >group-00/dir-007/unowned
    mkdir unowned-dir; echo mine >unowned-dir/file
    echo excluded >>excluded.log";

/// What may be touched to undo [`DAMAGE`]: entries whose paths begin so.
const DAMAGED: &[&str] = &[
    "group-00/dir-001/file-000001",
    "group-00/dir-002/file-000002",
    "group-00/dir-003/file-000003",
    "group-00/dir-004",
    "group-00/dir-005/file-000005",
    "group-00/dir-006/file-000006",
    "clip-000.bin",
    "disk.img",
];

/// What is not ours after [`DAMAGE`].
const UNOWNED: &[&str] = &["group-00/dir-007/unowned", "unowned-dir", "excluded.log"];

/// Stores a tree, and returns its place and an exact copy of it.
fn stored(world: &World, name: &str) -> Result<(Place, PathBuf)> {
    let place = world.place(name)?;
    fixtures::many_files(&place.work, 2000)?;
    fixtures::media(&place.work, 5 << 20)?;
    fixtures::disk_image(&place.work.join("disk.img"), 256 << 20, 8 << 20)?;
    std::fs::write(place.work.join("excluded.log"), "not ours\n")?;
    place.init()?;
    succeed(&mut place.gdo(&["snapshot", "-m", "first", "--exclude", "*.log", "."]))?;
    let listed = succeed(&mut place.git(&["ls-tree", "-r", "--name-only", "HEAD"]))?.text();
    ensure!(!listed.lines().any(|line| line == "excluded.log"), "an excluded file was stored");
    let reference = place.dir.join("reference");
    copy(&place.work, &reference)?;
    Ok((place, reference))
}

fn damage(dir: &Path) -> Result {
    succeed(Command::new("sh").args(["-ec", DAMAGE]).current_dir(dir)).map(drop)
}

pub fn only_differences(world: &World) -> Result<String> {
    let (place, reference) = stored(world, "only-differences")?;
    damage(&place.work)?;
    let before = fingerprint(&place.work)?;
    succeed(&mut place.gdo(&["restore"]))?;
    let after = fingerprint(&place.work)?;

    let left: Vec<Difference> =
        compare(&reference, &place.work, &Options::default())?.into_iter().filter(|found| !is_about_unowned(found)).collect();
    must_be_none(&left).context(|| "the restored tree is not the stored one")?;
    for path in UNOWNED {
        ensure!(before.contains_key(*path) && before.get(*path) == after.get(*path), "'{path}' is not ours and was touched");
    }

    let touched = touched(&before, &after);
    let surplus: Vec<&String> = touched.iter().filter(|path| !may_be_touched(path)).collect();
    ensure!(surplus.is_empty(), "{} unchanged entries were touched: {:?}", surplus.len(), &surplus[..surplus.len().min(10)]);
    Ok(format!("{} of {} entries touched", touched.len(), after.len()))
}

fn may_be_touched(path: &str) -> bool {
    // A directory is touched when a name in it is replaced, and its time was changed when a name was planted.
    let holds_damage =
        DAMAGED.iter().chain(UNOWNED).any(|damaged| Path::new(damaged).ancestors().skip(1).any(|dir| dir == Path::new(path)));
    holds_damage || DAMAGED.iter().any(|damaged| path.starts_with(damaged))
}

/// Says whether a difference only shows that an unowned entry was kept.
fn is_about_unowned(found: &Difference) -> bool {
    let path = String::from_utf8_lossy(&found.path);
    let is_unowned = UNOWNED.iter().any(|unowned| path == *unowned);
    is_unowned && (found.what == What::OnlyInSecond || path == "excluded.log")
}

pub fn dry_run(world: &World) -> Result<String> {
    let (place, _) = stored(world, "dry-run")?;
    damage(&place.work)?;
    let before = fingerprint(&place.work)?;
    let outcome = run(&mut place.gdo(&["restore", "-n"]))?;
    ensure!(matches!(outcome.code, 0 | 1), "'restore -n' exited with {}, expected 0 or 1:\n{}", outcome.code, outcome.tail(15));
    let touched = touched(&before, &fingerprint(&place.work)?);
    ensure!(touched.is_empty(), "'restore -n' touched {touched:?}");
    for path in ["dir-001/file-000001", "dir-002/file-000002", "dir-003/file-000003", "dir-004", "clip-000.bin", "disk.img"] {
        must_name(&outcome, path)?;
    }
    for at in 8..20 {
        let unchanged = format!("dir-{at:03}");
        ensure!(
            !outcome.said().contains(&unchanged),
            "'restore -n' names '{unchanged}', which did not change:\n{}",
            outcome.tail(15)
        );
    }
    ensure!(!outcome.said().contains("unowned-dir"), "'restore -n' names what is not ours:\n{}", outcome.tail(15));
    Ok(String::new())
}

pub fn running_program(world: &World) -> Result<String> {
    let place = world.place("running-program")?;
    let program = place.work.join("program");
    // The first version runs too, but is another file.
    let mut first = std::fs::read("/bin/sleep")?;
    first.extend(fixtures::Seeded::new(20).bytes(300_000));
    std::fs::write(&program, &first)?;
    succeed(Command::new("chmod").arg("0755").arg(&program))?;
    place.init()?;
    place.snapshot("first version")?;
    std::fs::remove_file(&program)?;
    copy(Path::new("/bin/sleep"), &program)?;
    place.snapshot("second version")?;

    let mut running =
        Running(Command::new(&program).arg("300").stdin(Stdio::null()).spawn().context(|| "cannot start the program")?);
    succeed(&mut place.gdo(&["restore", "--source", "HEAD~1"]))?;
    ensure!(std::fs::read(&program)? == first, "the running program's file does not have the restored content");
    ensure!(running.0.try_wait()?.is_none(), "the running program died");
    succeed(Command::new(&program).arg("0")).context(|| "the restored program does not run")?;
    Ok(String::new())
}

/// A child that is ended when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
