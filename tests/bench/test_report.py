"""The arithmetic of the benchmark, on figures that were worked out by hand."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import document
import host
from claims import rows_of
from report import Row, number, percentile, table


class Percentiles(unittest.TestCase):
    def test_nearest_rank_is_a_value_that_was_measured(self):
        samples = [15.0, 20.0, 35.0, 40.0, 50.0]
        self.assertEqual([percentile(samples, level) for level in (5, 30, 40, 50, 100)], [15.0, 20.0, 20.0, 35.0, 50.0])

    def test_order_does_not_matter_and_the_worst_of_a_hundred_is_above_p99(self):
        samples = [float(value) for value in range(100, 0, -1)]
        self.assertEqual((percentile(samples, 50), percentile(samples, 95), percentile(samples, 99)), (50.0, 95.0, 99.0))

    def test_one_sample_is_every_percentile(self):
        self.assertEqual((percentile([7.0], 1), percentile([7.0], 99)), (7.0, 7.0))


class Ratios(unittest.TestCase):
    ROUNDS = [{"S": [100.0, 300.0, 200.0], "Q": [10.0, 20.0, 30.0]}, {"S": [400.0], "Q": [10.0]}, {"S": [90.0], "Q": [30.0]}]

    def test_the_ratio_is_the_median_of_the_rounds_and_the_figures_are_of_all_samples(self):
        row = Row.of_samples("S1", "latency", "ms", 50, self.ROUNDS, "S", "Q")
        self.assertEqual(row.ratios, [10.0, 40.0, 3.0])
        self.assertEqual((row.ratio, row.peer, row.ours, row.counts), (10.0, 200.0, 20.0, [5, 5]))

    def test_more_is_better_for_rates_and_less_for_costs(self):
        rounds = [{"S": 4.0, "Q": 40.0}, {"S": 5.0, "Q": 20.0}, {"S": 2.0, "Q": 12.0}]
        rate = Row.of_values("S2", "rate", "/s", rounds, [1, 1], "S", "Q", more_is_better=True)
        cost = Row.of_values("S3", "cost", "ms", rounds, [1, 1], "S", "Q", more_is_better=False)
        self.assertEqual((rate.ratios, rate.ratio), ([10.0, 4.0, 6.0], 6.0))
        self.assertEqual(cost.ratios, [0.1, 0.25, 1 / 6])
        self.assertEqual((rate.peer, rate.ours), (4.0, 20.0))


class Bars(unittest.TestCase):
    def row(self, ratio: float, **more) -> Row:
        return Row("S1", "x", "ms", "Q", 1.0, "S", ratio, [1, 1], [ratio], **more)

    def test_a_bar_that_is_just_reached_is_reached(self):
        self.assertIs(self.row(50.0, bar=50).passed, True)
        self.assertIs(self.row(49.9, bar=50).passed, False)
        self.assertIsNone(self.row(49.9).passed)

    def test_a_figure_without_a_peer_is_held_to_its_bar_itself(self):
        self.assertIs(Row.alone("S6", "pickup", "ms", "Q", 5, 10, bar=5, at_most=True).passed, True)
        self.assertIs(Row.alone("S6", "pickup", "ms", "Q", 6, 10, bar=5, at_most=True).passed, False)
        self.assertIs(Row.alone("S7", "claims", "/s", "Q", 999, 10, bar=1000).passed, False)

    def test_the_stretch_is_told_apart_from_the_bar(self):
        row = self.row(70.0, bar=50, stretch=100).to_json()
        self.assertEqual((row["passed"], row["stretchReached"], row["ratio"]), (True, False, 70.0))


class LongLines(unittest.TestCase):
    def test_the_change_is_of_each_round_and_then_the_median(self):
        rounds = [{"runs": 10, "line": 1000, "empty": empty, "long": long} for empty, long in ((1000, 900), (2000, 1000), (1500, 1500))]
        empty, long, change = rows_of(rounds)
        self.assertEqual((empty.ours, long.ours, change.ours), (1500, 1000, 10.0))
        self.assertEqual((empty.passed, long.passed, change.passed), (True, True, True))


class Printing(unittest.TestCase):
    def test_three_digits(self):
        self.assertEqual([number(value) for value in (0.123, 1.234, 12.34, 123.4, 12345.6)], ["0.12", "1.23", "12.3", "123", "12,346"])

    def test_a_missed_bar_is_seen(self):
        rows = [Row("S1", "x", "ms", "Q", 1.0, "S", 9.0, [1, 1], [9.0], bar=10), Row.alone("S8", "y", "MiB", "Q", 3, 1, bar=5, at_most=True)]
        head, _, missed, held = table(rows, colour=False).splitlines()
        self.assertIn("ratio of each round", head)
        self.assertIn("FAIL", missed)
        self.assertIn("pass", held)
        self.assertIn("<= 5 MiB", held)


class Documents(unittest.TestCase):
    ROWS = [Row("S1", "submit -> result, paced, p50", "ms", "Quayside/oci", 2.0, "S", 300.0, [5, 5], [150.0, 140.0, 160.0], bar=100, stretch=200)]

    def test_what_is_written_is_what_was_measured_and_nothing_else_changes(self):
        page = "before\n<!-- measured: figures -->\nold\n<!-- end -->\nafter\n"
        text = document.replaced(page, "figures", document.results(self.ROWS))
        self.assertTrue(text.startswith("before\n<!-- measured: figures -->\n| |") and text.endswith("|\n<!-- end -->\nafter\n"))
        self.assertIn("| S1 | submit -> result, paced, p50 | S | 300 ms | oci | 2.00 ms | 150 x | >= 100 x, reached | 200, no | 140 to 160 | 5 / 5 |", text)
        self.assertNotIn("old", text)

    def test_rows_survive_the_json_file(self):
        self.assertEqual(document.row_of(self.ROWS[0].to_json()), self.ROWS[0])

    def test_a_bar_is_as_long_as_its_figure(self):
        lengths = [float(text.partition('"')[0]) for text in document.picture(self.ROWS).split('<rect class=')[1:] for text in text.split('width="')[1:2]]
        self.assertEqual(len(lengths), 2)
        self.assertAlmostEqual(lengths[0] / lengths[1], 150, delta=3)


class Host(unittest.TestCase):
    def test_cpu_time_of_the_machine_covers_what_this_process_burns(self):
        before, own = host.cpu_seconds(), host.read(host.os.getpid()).cpu
        while host.read(host.os.getpid()).cpu - own < 0.2:
            sum(range(10000))
        self.assertGreaterEqual(host.cpu_seconds() - before, 0.15)

    def test_this_process_is_found_and_is_no_container(self):
        mine = host.read(host.os.getpid())
        self.assertEqual((mine.parent, mine.namespace), (host.os.getppid(), host.os.readlink("/proc/self/ns/pid")))
        self.assertGreater(host.pss(mine.pid), 1 << 20)
        self.assertEqual(host.containers_of(sys.argv[0]), {})


if __name__ == "__main__":
    unittest.main()
