"""Model families: which networks there are, what they are called in files, what they say to the step.

family.py   the protocol                    load.py   from settings or a checkpoint to a Family
sd1/ sd2/   one folder each                 common/   what families share
"""
