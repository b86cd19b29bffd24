//! What `gdo restore` does to files that are already there.

mod common;

use common::World;

#[test]
fn one_member_of_a_link_group_gets_its_own_stored_content() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.snapshot();
    world.write("a", "changed"); // and with it b
    world.ok(&["restore", "b"]);
    assert_eq!((world.read("a").as_str(), world.read("b").as_str()), ("changed", "stored"));
    // The name that leads the group may be something else altogether in another target.
    world.write("../target/a", "foreign");
    world.ok(&["restore", "--target", "../target", "b"]);
    assert_eq!((world.read("../target/a").as_str(), world.read("../target/b").as_str()), ("foreign", "stored"));
}

#[test]
fn a_part_of_a_link_group_that_is_right_stays_linked() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.link("a", "c");
    world.snapshot();
    for part in [&["restore", "a"][..], &["restore", "b"], &["restore", "b", "c"]] {
        world.ok(part);
        assert_eq!((world.inode("a"), world.inode("a")), (world.inode("b"), world.inode("c")), "{part:?}");
    }
    std::fs::remove_file(world.path("b")).unwrap();
    world.ok(&["restore", "b"]);
    assert_eq!(world.inode("a"), world.inode("b"));
}

#[test]
fn a_member_of_a_link_group_that_was_edited_in_a_plain_clone_keeps_the_edit() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.link("a", "c");
    world.snapshot();
    world.sh("git clone -q .git ../clone && cd ../clone && echo edit >b && git commit -qam edit && git push -q origin HEAD:refs/heads/edit");
    world.ok(&["restore", "--source", "edit", "--target", "../target"]);
    assert_eq!((world.read("../target/a").as_str(), world.read("../target/b").as_str()), ("stored", "edit\n"));
    assert_eq!(world.inode("../target/a"), world.inode("../target/c"));
}
