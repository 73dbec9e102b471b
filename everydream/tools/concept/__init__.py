"""`everydream concept`: imaginAIry's train-concept in one command.

    photos -> prepared (faces) -> project.yaml -> class images, training -> the export to keep -> one file -> prompts

Everything lies in one folder, concepts/<name>/. Each step finds what an earlier run of it left, so the same
command goes on wherever it was stopped.
"""
