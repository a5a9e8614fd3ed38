"""The table of benchmarks/few_steps.py."""

from benchmarks.few_steps import markdown


def test_losses_are_paired_and_in_percent_of_the_reference():
    teacher = {"LPIPS (alex)": [0.2, 0.4, 0.2, 0.4], "DISTS": [0.3, 0.3, 0.3, 0.3]}
    student = {"LPIPS (alex)": [0.203, 0.403, 0.203, 0.403], "DISTS": [0.27, 0.27, 0.27, 0.27]}
    *_, first, second = markdown({"teacher": teacher, "student, 1": student}, "teacher", crops=2).splitlines()
    assert first == "| teacher | 0.3000 |  | 0.3000 |  |"
    assert second == "| student, 1 | 0.3030 | +1.0 (+1.0 to +1.0) | 0.2700 | -10.0 (-10.0 to -10.0) |"
