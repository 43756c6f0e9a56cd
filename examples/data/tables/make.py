"""Writes the tables from the files that the package scikit-learn 1.9.1 carries."""
import csv
from pathlib import Path

from sklearn.datasets import load_breast_cancer, load_diabetes

HERE = Path(__file__).parent


def write(name, header, rows):
    with open(HERE / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def short(x):
    return f"{x:g}" if float(f"{x:g}") == x else repr(float(x))


cancer = load_breast_cancer()
header = [n.replace(" ", "_") for n in cancer.feature_names] + ["diagnosis"]
write("breast_cancer.csv", header, (
    [*map(short, x), cancer.target_names[y]] for x, y in zip(cancer.data, cancer.target)
))
diabetes = load_diabetes(scaled=False)
write("diabetes.csv", [*diabetes.feature_names, "progression"], (
    [*map(short, x), short(y)] for x, y in zip(diabetes.data, diabetes.target)
))
