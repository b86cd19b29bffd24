//! What `gdo add`, `gdo snapshot` and `gdo rm` notice, and what they leave alone.

use crate::common::World;

#[test]
fn paths_in_a_path_that_is_named_too_are_taken_once() {
    for paths in [["a", "a/b"], ["a/b/c", "a"], ["a/b", "a/b/c"], ["a", "a"]] {
        let world = World::new();
        world.write("a/b/c", "1");
        world.ok(&[&["snapshot"], &paths[..]].concat());
        assert_eq!(world.stored(), ["a/b/c"], "{paths:?}");
    }
}

#[test]
fn a_directory_in_the_place_of_a_file_is_taken_also_by_a_path_below_it() {
    let world = World::new();
    world.write("x", "1");
    world.snapshot();
    std::fs::remove_file(world.path("x")).unwrap();
    world.write("x/y", "2");
    world.ok(&["snapshot", "x/y"]);
    assert_eq!(world.stored(), ["x/y"]);
    world.ok(&["git", "fsck", "--strict"]);
}

#[test]
fn a_file_that_went_with_its_directory_can_be_named() {
    let world = World::new();
    world.write("d/f", "1");
    world.write("e/f", "1");
    world.snapshot();
    world.sh("rm -r d e");
    world.ok(&["snapshot", "d/f"]);
    assert_eq!(world.stored(), ["e/f"]);
    world.ok(&["rm", "e/f"]);
    world.ok(&["commit", "-m", "gone"]);
    assert_eq!(world.stored(), [""; 0]);
}

#[test]
fn what_is_named_is_taken_whatever_info_exclude_says() {
    let world = World::new();
    world.write(".git/info/exclude", "cache/\n*.o\n");
    world.write("cache/f", "1");
    world.write("a.o", "1");
    world.write("b.o", "1");
    world.ok(&["add", "cache", "a.o"]);
    world.ok(&["snapshot"]);
    assert_eq!(world.stored(), ["a.o", "cache/f"]);
}

#[test]
fn a_new_file_above_the_limit_is_left_out_and_one_that_is_excluded_is_not_even_opened() {
    let world = World::new();
    for (path, content) in [("small", "12345"), ("large", "123456"), ("secret.key", "1")] {
        world.write(path, content);
    }
    world.sh("strace -f -o ../trace -e trace=openat2,openat gdo snapshot -q --exclude-larger-than 5 --exclude '*.key'");
    assert_eq!(world.stored(), ["small"]);
    world.sh("strace -f -o ../trace -e trace=openat2,openat gdo snapshot -q --exclude '*.key'");
    assert_eq!(world.stored(), ["large", "small"]);
    let trace = world.read("../trace");
    assert!(trace.contains("\"large\"") && !trace.contains("secret.key"), "{trace}");
}

#[test]
fn what_is_mounted_over_a_file_is_taken_for_what_it_is_whatever_the_directory_lists() {
    let world = World::new();
    world.write("file", "1");
    world.sh("unshare -m sh -c 'mount --bind /dev/null file && gdo snapshot -q'");
    assert_eq!(world.stored(), [""; 0]);
    world.sh("rm file && gdo restore && test -c file");
}

#[test]
fn a_number_of_a_removed_file_makes_no_link() {
    let world = World::new();
    // Until a filesystem gives the number of the removed file away again; some never do.
    for n in 0..20 {
        let (old, new) = (format!("old{n}"), format!("d{n}/new"));
        world.write(&old, "same");
        std::fs::create_dir(world.path(&format!("d{n}"))).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50)); // so that the index keeps the number
        world.ok(&["snapshot", &old]);
        let inode = world.inode(&old);
        std::fs::remove_file(world.path(&old)).unwrap();
        world.write(&new, "same");
        if world.inode(&new) != inode {
            continue;
        }
        world.link(&new, &format!("d{n}/other"));
        world.ok(&["snapshot", &format!("d{n}")]);
        world.ok(&["restore", "--target", "../target"]);
        assert_ne!(world.inode(&format!("../target/{old}")), world.inode(&format!("../target/{new}")));
        return;
    }
}

#[test]
fn rm_keeps_what_took_the_place_of_something_stored() {
    let world = World::new();
    world.write("dir/f", "stored");
    world.sh("mkfifo node");
    world.snapshot();
    world.sh("rm -r node dir; echo precious >node; echo precious >dir");
    for path in ["node", "dir"] {
        let run = world.gdo(&["rm", path]);
        assert_eq!(run.code, 10, "{path}: {}", run.err);
        assert_eq!(world.read(path), "precious\n");
    }
    world.ok(&["rm", "--force", "node"]);
    assert!(!world.exists("node"));
}

#[test]
fn gc_asks_whoever_ever_put_a_chunk_into_the_store() {
    let world = World::new();
    world.sh("gdo --store ../shared init ../other && head -c 300000 /dev/urandom >big && gdo --store ../shared snapshot -q");
    world.sh("gdo -C ../other gc --prune now && gdo --store ../shared check");
}

#[test]
fn a_repository_that_was_moved_is_asked_in_its_new_place() {
    let world = World::new();
    world.sh("gdo --store ../shared init ../other && cd ../other && head -c 300000 /dev/urandom >big && gdo snapshot -q");
    world.sh("gdo --store ../shared init && cd .. && mv other moved && cd moved && gdo gc && cd ../tree && gdo gc --prune now");
    world.sh("gdo -C ../moved check && rm ../moved/big && gdo -C ../moved restore");
}

#[test]
fn gc_waits_for_a_repository_that_is_gone_until_it_is_forgotten() {
    let world = World::new();
    world.sh("gdo --store ../shared init ../other && cd ../other && head -c 300000 /dev/urandom >big && gdo snapshot -q");
    world.sh("gdo --store ../shared init; echo 1 >f; gdo snapshot -q");
    let is_kept = || world.sh("find ../shared/packs -name '*.pack' | wc -l").trim() == "1";
    // It is there: nobody makes its chunks go.
    assert_eq!(world.gdo(&["gc", "--forget", "../other"]).code, 65);
    world.sh("mv ../other ../unmounted");
    let run = world.gdo(&["gc", "--prune", "now"]);
    assert_eq!(run.code, 9, "{}", run.err);
    let advice = format!("gdo gc --forget {}", world.path("../other/.git").display()).replace("tree/../", "");
    assert!(run.err.contains(&advice), "{}", run.err);
    assert_eq!(world.gdo(&["gc", "--forget", "../another"]).code, 9);
    assert!(world.ok(&["gc", "-n", "--forget", "../other"]).starts_with("would remove 1 chunk packs") && is_kept());
    assert_eq!(world.gdo(&["gc"]).code, 9, "a dry run forgets nothing");
    assert!(is_kept());
    world.ok(&["gc", "--forget", "../other"]);
    assert!(!is_kept());
    world.ok(&["gc"]);
}

#[test]
fn only_names_of_our_own_temporary_files_are_passed_over() {
    let world = World::new();
    world.write(".gdo-tmp-notes", "1");
    world.write(".gdo-tmp-mine/f", "1");
    world.write(".gdo-tmp-0123456789abcdef", "left by a run that was killed");
    world.write(".gdo-tmp-fedcba9876543210/f", "1");
    world.write("f", "1");
    world.snapshot();
    assert_eq!(world.stored(), [".gdo-tmp-fedcba9876543210/f", ".gdo-tmp-mine/f", ".gdo-tmp-notes", "f"]);
    world.write("f", "2");
    world.ok(&["restore"]);
    assert_eq!(world.read("f"), "1");
    assert!(world.exists(".gdo-tmp-notes") && !world.exists(".gdo-tmp-0123456789abcdef"));
}

#[test]
fn what_rm_cached_gave_up_is_not_taken_again_until_it_or_what_holds_it_is_named() {
    for (given_up, again) in
        [("d/f", "d/f"), ("d/f", "d"), ("d/sub", "d/sub"), ("d/sub", "d/sub/x"), ("d/sub", "."), ("top", "top"), ("d/fifo", "d")]
    {
        let world = World::new();
        world.sh("mkdir -p d/sub; mkfifo d/fifo");
        for path in ["d/f", "d/g", "d/sub/x", "top"] {
            world.write(path, "1");
        }
        world.snapshot();
        let all = world.ok(&["ls", "-R", "-z"]);
        world.ok(&["rm", "--cached", given_up]);
        world.snapshot();
        let rest = world.ok(&["ls", "-R", "-z"]);
        assert!(rest.len() < all.len() && world.exists(given_up), "{given_up}");
        world.sh("touch d d/sub d/f top; rm .git/index"); // also when everything is looked at anew
        world.snapshot();
        assert_eq!(world.ok(&["ls", "-R", "-z"]), rest, "{given_up}");
        assert_eq!(world.ok(&["status", "-z"]), "", "{given_up}");
        world.ok(&["snapshot", again]);
        assert_eq!(world.ok(&["ls", "-R", "-z"]), all, "{given_up} by {again}");
        world.sh("gdo git fsck --strict");
    }
}

#[test]
fn in_a_directory_that_was_given_up_only_what_is_named_is_owned() {
    let world = World::new();
    world.write("d/sub/x", "1");
    world.write("d/sub/deep/x", "1");
    world.snapshot();
    world.ok(&["rm", "--cached", "d/sub"]);
    world.ok(&["snapshot", "d/sub/deep"]);
    world.write("d/new", "1");
    world.write("d/sub/new", "1");
    world.write("d/sub/deep/new", "1");
    world.snapshot();
    assert_eq!(world.stored(), ["d/new", "d/sub/deep/new", "d/sub/deep/x"]);
    // Given up again, with all that was taken back.
    world.ok(&["rm", "--cached", "d/sub"]);
    world.snapshot();
    assert_eq!(world.stored(), ["d/new"]);
    world.ok(&["add", "-n", "d/sub"]);
    world.snapshot();
    assert_eq!(world.stored(), ["d/new"]);
}

#[test]
fn a_file_that_is_called_like_our_list_is_not_taken_for_it() {
    let world = World::new();
    world.write("f", "1");
    world.write(".git-devops/unowned", "precious");
    world.snapshot();
    world.ok(&["rm", "--cached", "f"]);
    world.snapshot();
    world.ok(&["restore", "--source", "HEAD~1"]);
    assert_eq!(world.read(".git-devops/unowned"), "precious");
}

#[test]
fn what_a_killed_run_left_in_the_state_goes_with_the_next_one() {
    let world = World::new();
    world.write("f", "1");
    world.write(".git/devops/state/.gdo-tmp-0123456789abcdef", "half");
    world.snapshot();
    assert_eq!(world.sh("ls -A .git/devops/state"), "enrolled\nindex-checksum\nlock\nmirror\n");
}

#[test]
fn what_is_looked_at_each_time_and_found_the_same_writes_no_index() {
    let world = World::new();
    world.write("f", "1\n");
    world.sh("mkfifo fifo; sleep 0.1");
    world.snapshot();
    let before = world.inode(".git/index");
    assert!(world.ok(&["snapshot"]).contains("nothing changed: no commit"));
    assert_eq!(world.inode(".git/index"), before);
    world.sh("chmod 600 fifo");
    assert!(world.ok(&["snapshot"]).contains("1 with new metadata"));
    assert_ne!(world.inode(".git/index"), before);
}
