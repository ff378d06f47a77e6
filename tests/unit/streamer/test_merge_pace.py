from streamer.merge_pace import rest_s


def test_merges_go_on_at_once_when_nobody_else_needs_the_writer():
    assert rest_s(5.0, 0.3, merged=40, waiting=0, applied=False) == 0


def test_merges_leave_most_of_the_time_to_events_that_flow_by():
    assert rest_s(5.0, 0.25, merged=40, waiting=0, applied=True) == 9 * 0.25
    assert rest_s(5.0, 3.0, merged=40, waiting=0, applied=True) == 5.0


def test_merges_wait_for_the_interval_when_batches_wait_or_nothing_is_left_to_merge():
    assert rest_s(5.0, 0.1, merged=40, waiting=1, applied=True) == 5.0
    assert rest_s(5.0, 0.1, merged=40, waiting=1, applied=False) == 5.0
    assert rest_s(5.0, 0.1, merged=0, waiting=0, applied=False) == 5.0


def test_an_interval_of_zero_never_waits():
    assert rest_s(0.0, 3.0, merged=40, waiting=2, applied=True) == 0
