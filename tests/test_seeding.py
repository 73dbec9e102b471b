from everydream.seeding import derive, numpy_generator, torch_generator


def test_every_part_counts_and_so_does_its_place_and_type() -> None:
    seeds = {
        derive(1, "a"), derive(2, "a"), derive(1, "b"), derive(1, "a", 0), derive(1, "a", "0"),
        derive(1, "ab", "c"), derive(1, "a", "bc"), derive(1, "a", "b", "c"), derive(1, "a", "c", "b"),
    }  # fmt: skip
    assert len(seeds) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_values_are_fixed_for_ever() -> None:
    """A changed value would change every run that is resumed after an update."""
    assert derive(555, "noise", 0, "folder/a.png", 0) == 6509238263762277019
    assert numpy_generator(7).integers(1 << 30) == numpy_generator(7).integers(1 << 30)
    assert torch_generator(7).initial_seed() == 7


def test_names_that_are_not_unicode_are_seeds_too() -> None:
    assert derive(1, "draw", "bad\udcffname.png") != derive(1, "draw", "badname.png")
