"""holdfast: does this model's safety hold fast when somebody changes its weights?"""

__version__ = "0.1.0"
