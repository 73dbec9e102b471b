"""The demo: teach a tiny Stable Diffusion a new shape without its forgetting the old ones.

shapes      draws, captions and judges the pictures     make_data   the data set in datasets/demo
make_model  trains demo/model from scratch              score       the exam and the report
run         what `make demo` does                   board       what the measured pages share
scoreboard  how much ground truth it takes          methods     every method, measured
sizes       the same at Stable Diffusion's shape
"""
