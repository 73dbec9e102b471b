"""What a run will do, and what its images will teach besides: in words, as JSON and as a page.

run         the plan of a run and its end, for the trainer; lines that the inspection shows too
inspection  `everydream inspect`: all facts in one dictionary (`--json`), and a summary for a terminal
facts       one small file each, pure functions of plan, captions and looks: sources images buckets steps balance
            words tokens lint colours duplicates; findings puts them into sentences, worst first
page        the dictionary as one HTML file; `everydream studio` serves the same template, data and script
"""
