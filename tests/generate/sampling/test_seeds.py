from bc2.generate.sampling.seeds import prompt_seed, sequence_key


def test_the_first_prompt_has_the_seed_itself_and_the_others_have_their_own():
    seeds = [prompt_seed(7, number) for number in range(1000)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_seeds_share_no_prompt_seed():
    assert not {prompt_seed(1, i) for i in range(500)} & {prompt_seed(2, i) for i in range(500)}


def test_the_seeds_of_before_stay():
    # Results with a seed are promised to stay the same.
    assert prompt_seed(0, 1) == 5411845856264075768
    assert sequence_key(0, 0) == 3056769172604291498
