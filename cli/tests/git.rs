//! What `gdo git` lets git do.

use std::os::unix::fs::MetadataExt;

use crate::common::World;
use git_devops::id::ChunkId;

#[test]
fn git_never_hides_that_only_metadata_changed() {
    for command in [
        &["git", "diff"][..],
        &["git", "diff", "--stat", "HEAD"],
        &["git", "status"],
        &["git", "describe", "--always", "--dirty"],
        &["git", "describe", "--always", "--broken"],
        &["git", "diff-files"],
        &["git", "diff-index", "HEAD"],
        &["git", "blame", "f"],
        &["git", "write-tree"],
        &["git", "grep", "x"],
        &["diff"],
        &["status"],
    ] {
        let world = World::new();
        world.write("f", "x\n");
        std::thread::sleep(std::time::Duration::from_millis(50));
        world.snapshot();
        std::thread::sleep(std::time::Duration::from_millis(1100)); // git distrusts what is as young as its index
        world.sh("chmod 600 f");
        world.gdo(command);
        assert!(world.ok(&["status"]).contains("m f"), "{command:?}");
    }
}

#[test]
fn git_writes_no_file_beside_the_repository() {
    let world = World::new();
    world.write("f", "1\n");
    world.snapshot();
    world.write("f", "2\n");
    world.snapshot();
    for command in [
        &["git", "diff", "--output=f", "HEAD~1"][..],
        &["git", "log", "-p", "--output", "f"],
        &["git", "show", "--outp=f"],
        &["git", "shortlog", "--output=f", "HEAD"],
        &["git", "archive", "--output=f", "HEAD"],
        &["git", "archive", "-of", "HEAD"],
        &["git", "format-patch", "HEAD~1"],
        &["git", "format-patch", "-o", "f.d", "HEAD~1"],
        &["git", "merge-file", "f", "f", "f"],
    ] {
        let run = world.gdo(command);
        assert_eq!(run.code, 65, "{command:?}: {}", run.err);
    }
    assert_eq!(world.read("f"), "2\n");
    for command in [
        &["git", "format-patch", "--stdout", "HEAD~1"][..],
        &["git", "log", "-p", "--", "--output"],
        &["git", "describe", "--always"],
    ] {
        world.ok(command);
    }
}

#[test]
fn git_knows_who_commits_as_a_snapshot_does() {
    let world = World::new();
    world.write("f", "1\n");
    world.snapshot();
    let commit = world.ok(&["git", "commit-tree", "-m", "again", "HEAD^{tree}"]);
    let author = |rev: &str| world.ok(&["git", "log", "-1", "--format=%an <%ae>", rev]);
    assert_eq!(author(commit.trim()), author("HEAD"));
}

#[test]
fn an_index_that_stock_git_wrote_hides_no_change_of_metadata() {
    let world = World::new();
    world.write("f", "x\n");
    std::thread::sleep(std::time::Duration::from_millis(50));
    world.snapshot();
    std::thread::sleep(std::time::Duration::from_millis(1100)); // git distrusts what is as young as its index
    // Git finds the content clean, and notes the new times.
    world.sh("chmod 600 f; git --git-dir .git -c core.bare=false --work-tree . status --short; cp -p .git/index ../index");
    assert!(world.ok(&["status"]).contains("m f"));
    // Under a clock that was set back it is no other index.
    world.sh("touch -d 2001-01-01 .git/index");
    assert!(world.ok(&["status"]).contains("m f"));
    world.sh("cp -p ../index .git/index");
    // Whoever writes an index of ours after it, without having looked at the file, does not believe it either.
    for other in [&["attributes", "/x", "protect"][..], &["snapshot", "g"], &["add", "g"]] {
        world.write("g", "y\n");
        world.ok(other);
        assert!(world.ok(&["status"]).contains("m f"), "{other:?}");
        world.sh("cp -p ../index .git/index");
    }
    // It is our note that tells whose index it is: with a forged one the change is hidden.
    let index = std::fs::read(world.path(".git/index")).unwrap();
    let meta = std::fs::metadata(world.path(".git/index")).unwrap();
    let time = [&meta.mtime().to_be_bytes()[..], &(meta.mtime_nsec() as u32).to_be_bytes()[..]].concat();
    let note = [&index[index.len() - 20..], &time[..], &[0; 20][..]].concat();
    let note = [&note[..], &ChunkId::of(&note).as_bytes()[..12]].concat();
    std::fs::write(world.path(".git/devops/state/index-checksum"), note).unwrap();
    assert!(!world.ok(&["status"]).contains("m f"));
}

#[test]
fn what_is_only_announced_is_in_no_commit_and_no_restore_touches_it() {
    let world = World::new();
    let git = "git --git-dir .git -c core.bare=false --work-tree .";
    world.write("f", "1\n");
    world.write("n", "new\n");
    world.sh(&format!("{git} add -N n"));
    assert!(!world.gdo(&["status"]).out.contains("staged for the next commit"));
    assert!(world.ok(&["commit", "-m", "nothing"]).contains("no commit"));
    world.sh(&format!("{git} add f"));
    world.ok(&["commit", "-m", "f"]);
    assert_eq!(world.sh(&format!("{git} ls-tree -r --name-only HEAD")), "f\n");
    assert!(!world.gdo(&["status"]).out.contains("staged for the next commit"));
    world.ok(&["restore", "."]);
    assert_eq!(world.read("n"), "new\n");
    world.snapshot();
    assert_eq!(world.sh(&format!("{git} show HEAD:n")), "new\n");
}
