//! What did not change costs nothing; what changed a little costs a little.

use std::path::Path;
use std::time::Duration;

use crate::command::{Context, Result, succeed, wrapped};
use crate::{ensure, fixtures};

use super::{Place, World};

pub fn unchanged(world: &World) -> Result<String> {
    let place = world.place("unchanged")?;
    fixtures::many_files(&place.work, 5000)?;
    fixtures::media(&place.work, 10 << 20)?;
    fixtures::oddities(&place.work)?;
    // A file as young as the snapshot must be read again: its time alone cannot tell whether it changed.
    std::thread::sleep(Duration::from_millis(50));
    place.init()?;
    place.snapshot("first")?;
    let head = place.head()?;

    let opened = opened_by_snapshot(&place)?;
    ensure!(place.head()? == head, "a snapshot of an unchanged tree made a commit");
    ensure!(opened.is_empty(), "{} files were opened although nothing changed, '{}' first", opened.len(), opened[0]);

    // The same eyes must see an open where there has to be one.
    std::fs::write(place.work.join("group-00/dir-000/new"), "new\n")?;
    let opened = opened_by_snapshot(&place)?;
    ensure!(opened == ["group-00/dir-000/new"], "expected the one new file to be opened, got {opened:?}");
    ensure!(place.head()? != head, "a snapshot of a changed tree made no commit");
    Ok(String::new())
}

/// Makes a snapshot and returns the regular files of the work tree that it opened, once each.
fn opened_by_snapshot(place: &Place) -> Result<Vec<String>> {
    let traces = place.dir.join("traces");
    fixtures::remove(&traces)?;
    std::fs::create_dir(&traces)?;
    let prefix = traces.join("trace").into_os_string().into_string().expect("BUG: scratch directories have plain names");
    let snapshot = place.gdo(&["snapshot", "-m", "traced", "."]);
    // One file for each thread, so that no line is cut by another's.
    let strace = ["-ff", "-qq", "-y", "-e", "trace=open,openat,openat2", "-o", &prefix];
    succeed(&mut wrapped(&snapshot, Path::new("strace"), &strace))?;
    let mut opened = Vec::new();
    for trace in std::fs::read_dir(&traces)? {
        let text = std::fs::read(trace?.path())?;
        opened.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| opened_file(line, &place.work)));
    }
    opened.sort();
    opened.dedup();
    Ok(opened)
}

/// Returns the regular file below `top` that a line of strace shows to be opened.
///
/// A handle with O_PATH cannot read and is not counted.
fn opened_file(line: &str, top: &Path) -> Option<String> {
    let (call, result) = line.rsplit_once(" = ")?;
    let (fd, path) = result.split_once('<')?;
    let path = Path::new(path.strip_suffix('>')?);
    let is_open = fd.parse::<u32>().is_ok() && !call.contains("O_PATH") && !call.contains("O_DIRECTORY");
    let below = path.strip_prefix(top).ok()?;
    (is_open && !path.is_dir()).then(|| below.display().to_string())
}

pub fn small_edit(world: &World) -> Result<String> {
    let place = world.place("small-edit")?;
    let disk = place.work.join("disk.img");
    let data = if world.full { 3 << 30 } else { 300 << 20 };
    fixtures::disk_image(&disk, 4 << 30, data)?;
    place.init()?;
    place.snapshot("first")?;
    let before = place.stored_bytes()?;
    let mut most = 0;
    for offset in [0, 1_234_567_168, (4 << 30) - 4096] {
        let before = place.stored_bytes()?;
        fixtures::edit_4k(&disk, offset)?;
        place.snapshot("edited").context(|| format!("after an edit at {offset}"))?;
        let added = place.stored_bytes()?.saturating_sub(before);
        ensure!(added > 0, "nothing was added for an edit of 4 KiB at {offset}");
        ensure!(added <= 1 << 20, "an edit of 4 KiB at {offset} added {added} bytes, 1048576 are allowed");
        most = most.max(added);
    }
    place.restores_exactly()?;
    Ok(format!("{} MiB stored, at most {} KiB added", before >> 20, most >> 10))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_open_is_seen_where_it_reads_a_file_of_the_tree() {
        let lines = [
            (r#"openat2(4</w/d>, "f", {flags=O_RDONLY|O_NOFOLLOW|O_CLOEXEC}, 24) = 5</w/d/f>"#, Some("d/f")),
            (r#"openat(AT_FDCWD</>, "/w/x y", O_RDONLY) = 3</w/x y>"#, Some("x y")),
            (r#"openat2(4</w/d>, "f", {flags=O_PATH|O_NOFOLLOW}, 24) = 5</w/d/f>"#, None),
            (r#"openat(4</w>, "d", O_RDONLY|O_DIRECTORY) = 5</w/d>"#, None),
            (r#"openat(4</w>, "f", O_RDONLY) = -1 ENOENT (No such file or directory)"#, None),
            (r#"openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY) = 3</etc/passwd>"#, None),
        ];
        for (line, expected) in lines {
            assert_eq!(opened_file(line, Path::new("/w")).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn strace_shows_what_a_program_opens() {
        if Command::new("strace").arg("-V").output().is_err() {
            return;
        }
        let place = Place::new(Path::new("/bin/cat"), &crate::command::target_dir().join("xtask-tests/strace")).unwrap();
        std::fs::write(place.work.join("read"), "x").unwrap();
        let trace = place.dir.join("trace");
        let mut cat = Command::new("cat");
        cat.arg("read").current_dir(&place.work);
        let strace = ["-ff", "-qq", "-y", "-e", "trace=open,openat,openat2", "-o", trace.to_str().unwrap()];
        succeed(&mut wrapped(&cat, Path::new("strace"), &strace)).unwrap();
        let traces = std::fs::read_dir(&place.dir).unwrap().map(|entry| entry.unwrap().path());
        let text: String = traces
            .filter(|path| path.to_string_lossy().contains("/trace."))
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        let opened: Vec<String> = text.lines().filter_map(|line| opened_file(line, &place.work)).collect();
        assert_eq!(opened, ["read"]);
    }
}
